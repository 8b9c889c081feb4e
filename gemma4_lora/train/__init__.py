"""Additions to `kd.train`."""

from gemma4_lora.train._curves import curves
from gemma4_lora.train._terminal import QuietSetup
from gemma4_lora.train._terminal import TerminalWriter
from gemma4_lora.train._train_step import TrainStep

__all__ = [
    'curves',
    'QuietSetup',
    'TerminalWriter',
    'TrainStep',
]
