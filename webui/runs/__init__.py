"""Jobs and runs as they lie on the disk. No gradio."""
