"""Turn images into a dataset of images and captions: `python -m preprocess --input_dir raw --output_dir data/cat`."""
