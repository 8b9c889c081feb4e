"""Restoring released checkpoints into a Kauldron train state."""
