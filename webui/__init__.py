"""The web page: `python -m webui`. An application beside the trainer and preprocess. Imports no torch."""
