"""The objective: noise, timesteps, losses."""
