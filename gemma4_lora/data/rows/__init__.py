"""Dataset rows as they come: shown in messages, and what damages them."""
