"""Checkpoints on disk, leaf by leaf."""
