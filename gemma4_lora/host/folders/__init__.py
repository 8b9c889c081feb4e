"""Folders that are whole or absent, on a disk and in a bucket."""
