"""What we know of Gemma 4: its classes, its parameters, and their names."""
