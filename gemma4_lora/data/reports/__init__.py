"""What a config's data are: counts and pictures, for people."""
