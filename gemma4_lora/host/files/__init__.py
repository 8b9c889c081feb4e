"""Checks files that others wrote."""
