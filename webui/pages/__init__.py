"""The tabs of the page, and their periodic updates."""
