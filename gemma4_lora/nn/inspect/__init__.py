"""What a LoRA adapts, and what it does: for people."""
