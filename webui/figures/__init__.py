"""Numbers of trainings, before and after: what one would take, and what the runs have left."""
