"""LoRA training for Stable Diffusion XL: one noun per module, plain values in; no module imports an entry point."""
