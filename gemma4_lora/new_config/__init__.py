"""`gemma4_lora new`: a config for a user's data."""
