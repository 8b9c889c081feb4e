"""From the fields of a row to a conversation, and to its text."""
