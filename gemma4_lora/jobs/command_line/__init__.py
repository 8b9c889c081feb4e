"""Errors of a command line and its config, in one line."""
