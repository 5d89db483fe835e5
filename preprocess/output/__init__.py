"""The dataset and its reports as files."""
