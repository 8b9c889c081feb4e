"""Losses and metrics over Gemma's vocabulary that never make the logits."""

from gemma4_lora.losses._cross_entropy import softmax_cross_entropy
from gemma4_lora.losses._dpo import DpoAccuracy
from gemma4_lora.losses._dpo import DpoLoss
from gemma4_lora.losses._head import Head
from gemma4_lora.losses._loss import SoftmaxCrossEntropyWithIntLabels
from gemma4_lora.losses._metrics import Accuracy
from gemma4_lora.losses._metrics import Perplexity

__all__ = [
    'Accuracy',
    'DpoAccuracy',
    'DpoLoss',
    'Head',
    'Perplexity',
    'softmax_cross_entropy',
    'SoftmaxCrossEntropyWithIntLabels',
]
