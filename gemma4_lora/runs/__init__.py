"""A run on disk: fuse, export, quantize, chat."""
