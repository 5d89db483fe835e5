"""Settings by topic. A section is the argument of what it configures."""
