"""Ranges of files: from a disk, or from a bucket, which answers late."""
