"""What all wrappers of a Gemma 4 model share."""
