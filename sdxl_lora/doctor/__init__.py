"""What is wrong with a machine, before a training finds out: `python -m sdxl_lora.doctor`."""
