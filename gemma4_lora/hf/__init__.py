"""Hugging Face: PEFT folders, both ways; adapters for servers."""

from gemma4_lora.hf._load_peft import load_peft
from gemma4_lora.hf._load_peft import LoadedLoRA
from gemma4_lora.hf._save_mlx import save_mlx
from gemma4_lora.hf._save_peft import save_peft

__all__ = [
    'load_peft',
    'LoadedLoRA',
    'save_mlx',
    'save_peft',
]
