"""Optimizers, their learning rates, and a trial of one before training."""
