"""What the text of a compiled program says."""
