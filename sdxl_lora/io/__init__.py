"""Files: written whole, hashed, remembered."""
