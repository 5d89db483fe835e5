"""Training LoRAs of Stable Diffusion XL: one noun per module, plain values in, no module imports an entry point."""

DISTRIBUTION = "sdxl-lora-trainer"  # its name in pyproject.toml, for importlib.metadata
