"""Source images of datasets: uploads and existing folders. No gradio."""
