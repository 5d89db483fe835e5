"""Savings of time and memory that keep the results of a training."""
