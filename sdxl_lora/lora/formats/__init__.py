"""LoRA files of every layout, without models."""
