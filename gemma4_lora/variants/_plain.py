"""LoRA itself: a branch of low rank beside the linear.

Reference: https://arxiv.org/abs/2106.09685
"""

from gemma4_lora.variants import _variant

PLAIN = _variant.Variant(name='LoRA')
