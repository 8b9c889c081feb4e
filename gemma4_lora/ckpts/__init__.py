"""Restoring released checkpoints into a Kauldron train state."""

from gemma4_lora.ckpts._checkpointer import Checkpointer
from gemma4_lora.ckpts._load_lora import load_lora
from gemma4_lora.ckpts._load_lora import LoadLoRA
from gemma4_lora.ckpts._lora_checkpointer import LoRACheckpointer
from gemma4_lora.ckpts._partial_load import PartialLoad
from gemma4_lora.ckpts._save_quantized import save_quantized
from gemma4_lora.ckpts._skip_lora import SkipLoRA4
from gemma4_lora.ckpts.lora._lora_file import save_lora

__all__ = [
    'Checkpointer',
    'load_lora',
    'LoadLoRA',
    'LoRACheckpointer',
    'PartialLoad',
    'save_lora',
    'save_quantized',
    'SkipLoRA4',
]
