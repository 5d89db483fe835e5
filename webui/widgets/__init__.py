"""Building blocks of the tabs: forms, plots, HTML, and event handling."""
