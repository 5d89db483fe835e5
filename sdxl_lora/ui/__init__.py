"""The web page: `python -m sdxl_lora.ui`. An entry point, as preprocess and the trainer are; imports no torch."""
