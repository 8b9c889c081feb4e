"""What each server does with a LoRA: a table, its rules and its forms."""
