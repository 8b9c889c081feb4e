"""What a conversation must be to be trained on, whatever its layout."""
