"""Manual edits of a prepared dataset: captions, tags, masks and removed images, each with an undo. No gradio."""
