"""Evaluators that show a model with LoRA on and off, and BLEU."""

from gemma4_lora.evals._bleu import Bleu
from gemma4_lora.evals._with_base import Evaluator
from gemma4_lora.evals._with_base import SamplerEvaluator

__all__ = [
    'Bleu',
    'Evaluator',
    'SamplerEvaluator',
]
