"""Jobs and runs on disk. No gradio."""
