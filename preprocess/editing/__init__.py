"""A prepared dataset edited by hand: captions, tags, masks and images taken out, each with a way back. No gradio."""
