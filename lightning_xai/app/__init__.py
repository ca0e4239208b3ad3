"""The command line, and the data and networks it demonstrates itself on."""
