"""Restoring released checkpoints into a Kauldron train state."""

from gemma4_lora.ckpts._lora_checkpointer import LoRACheckpointer
from gemma4_lora.ckpts._partial_load import PartialLoad
from gemma4_lora.ckpts._skip_lora import SkipLoRA4
