"""What lies in a folder: pictures, captions, masks, earlier runs."""
