"""Conversations, and their text in Gemma 4's turns."""
