"""Jobs, runs and datasets as they lie on the disk. No gradio."""
