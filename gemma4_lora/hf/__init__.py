"""Hugging Face: PEFT folders, both ways."""

from gemma4_lora.hf._load import load_peft
from gemma4_lora.hf._load import LoadedLoRA
from gemma4_lora.hf._save import save_peft
