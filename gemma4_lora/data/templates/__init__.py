"""Whose turns a conversation is written in: dialog's, Google's, a file's."""
