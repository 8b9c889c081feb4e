"""Ranges of files on a disk, or in a bucket with its latency."""
