"""Optimizers, their rates, and whether one can be used at all."""
