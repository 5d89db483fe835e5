"""One picture: read, judged, cropped, masked."""
