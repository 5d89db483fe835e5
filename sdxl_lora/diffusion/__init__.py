"""Training objective: noise, timesteps, losses."""
