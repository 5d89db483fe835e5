"""Photos in, an image/caption dataset out: `python -m preprocess --input_dir raw --output_dir data/cat`."""
