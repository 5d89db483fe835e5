"""Images on their way to a dataset: uploads, and the folders that there are. No gradio."""
