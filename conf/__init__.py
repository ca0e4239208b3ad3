"""The configs of the command line, one folder per choice."""
