"""From the fields of a row to a conversation, one module per layout."""
