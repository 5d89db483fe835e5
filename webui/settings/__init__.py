"""Settings of the page: fields of a form, and its own folders."""
