"""What is on disk, leaf by leaf."""
