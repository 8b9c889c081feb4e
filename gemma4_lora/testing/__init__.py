"""Tiny models, checkpoints and a tokenizer, for tests and examples."""

from gemma4_lora.testing import _models
from gemma4_lora.testing._chat_rows import ChatRows
from gemma4_lora.testing._checkpoints import make_checkpoint
from gemma4_lora.testing._echo import EchoCheckpoint
from gemma4_lora.testing._models import *  # noqa: F403  One for each size.
from gemma4_lora.testing._pairs import EnFrPairs
from gemma4_lora.testing._random import ImageVocabulary
from gemma4_lora.testing._random import RandomCheckpoint
from gemma4_lora.testing._tokenizer import Gemma4Tokenizer
from gemma4_lora.testing._tokenizer import make_tokenizer

__all__ = [
    'ChatRows',
    'EchoCheckpoint',
    'EnFrPairs',
    'Gemma4Tokenizer',
    'ImageVocabulary',
    'make_checkpoint',
    'make_tokenizer',
    'RandomCheckpoint',
    *_models.__all__,
]
