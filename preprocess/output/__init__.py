"""Files of the dataset and its reports."""
