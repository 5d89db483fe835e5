"""Who may speak to the page, and how it is served."""
