"""Settings as the page sees them: fields and labels of a form, and the page's own folders."""
