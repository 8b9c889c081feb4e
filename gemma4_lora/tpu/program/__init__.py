"""Reads the text of a compiled program."""
