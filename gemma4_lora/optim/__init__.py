"""Optimizers for LoRA, around optax's."""

from gemma4_lora.optim._integers import keep_integers
from gemma4_lora.optim._lora_plus import lora_plus
from gemma4_lora.optim._used_gradients import frozen_gradients

__all__ = [
    'frozen_gradients',
    'keep_integers',
    'lora_plus',
]
