"""The page's texts in other languages."""
