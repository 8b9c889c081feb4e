"""LoRA around gemma's Gemma 4 models."""

from gemma4_lora.nn import _own_models
from gemma4_lora.nn._fuse import fuse_params
from gemma4_lora.nn._fuse import unfuse_params
from gemma4_lora.nn._lora import LoRA
from gemma4_lora.nn._mix import LoRAMix
from gemma4_lora.nn._own_models import *  # noqa: F403  Sizes that gemma lacks.
from gemma4_lora.nn._views import linears
from gemma4_lora.nn._views import LinearView
from gemma4_lora.nn.from_base._init_from_base import init_from_base
from gemma4_lora.nn.inspect._check import check
from gemma4_lora.nn.inspect._report import Report
from gemma4_lora.nn.inspect._summary import Summary
from gemma4_lora.nn.inspect._summary import summary
from gemma4_lora.nn.wrapper._router_fix import RouterFix

__all__ = [
    'check',
    'fuse_params',
    'init_from_base',
    'linears',
    'LinearView',
    'LoRA',
    'LoRAMix',
    'Report',
    'RouterFix',
    'Summary',
    'summary',
    'unfuse_params',
    *_own_models.__all__,
]
