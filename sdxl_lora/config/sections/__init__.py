"""Settings by topic. Each section is passed to the code it configures."""
