"""Tools for LoRA files: `python -m sdxl_lora.tools show|convert|merge|combine|resize|extract|check`."""
