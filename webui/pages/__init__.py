"""The tabs of the page, and what a look at it brings."""
