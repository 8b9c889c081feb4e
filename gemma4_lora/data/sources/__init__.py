"""Rows of a dataset, from files of several formats."""
