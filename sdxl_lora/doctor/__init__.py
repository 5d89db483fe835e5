"""Check of a machine before a training: `python -m sdxl_lora.doctor`."""
