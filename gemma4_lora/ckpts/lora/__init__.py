"""Files of LoRA alone, and what they say of the run that wrote them."""
