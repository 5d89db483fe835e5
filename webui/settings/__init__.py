"""Settings as the page sees them: fields of a form, and the page's own folders."""
