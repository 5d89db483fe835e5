"""Images from prompts, side by side and measured."""
