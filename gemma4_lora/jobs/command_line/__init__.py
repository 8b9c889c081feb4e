"""What is wrong with a command line and its config, in one line."""
