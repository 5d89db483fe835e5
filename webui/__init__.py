"""The web page, `python -m webui`: an application on top of the trainer and preprocess. Imports no torch."""
