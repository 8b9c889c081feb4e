"""Folders that are complete or absent, on a disk and in a bucket."""
