"""What a person does to images and captions by hand: bring them in, find them, change many at once, take one out."""
