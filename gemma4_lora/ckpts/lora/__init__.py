"""Files of LoRA alone, with the fingerprint of the run that wrote them."""
