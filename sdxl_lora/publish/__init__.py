"""What a finished run leaves for people."""
