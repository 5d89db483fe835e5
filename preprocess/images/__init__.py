"""Steps for one image: read, judge, crop, mask."""
