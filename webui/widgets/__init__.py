"""What the tabs are made of: forms, plots, HTML, and how events are answered."""
