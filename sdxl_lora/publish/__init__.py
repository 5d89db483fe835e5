"""Results of a finished run: side files, a model card, an upload to the Hub."""
