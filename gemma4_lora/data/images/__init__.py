"""Images of dataset rows: from what a field holds to patches for the tower."""
