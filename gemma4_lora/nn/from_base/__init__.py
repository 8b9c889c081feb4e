"""A and B that start from the base weights."""
