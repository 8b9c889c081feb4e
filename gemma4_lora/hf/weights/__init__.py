"""Base weights in files of transformers."""
