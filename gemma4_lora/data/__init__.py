"""Data transforms for Gemma 4: conversations to tokens and loss masks."""

from gemma4_lora.data._chat_task import ChatTask
from gemma4_lora.data._filters import DropLongPrompts
from gemma4_lora.data._packed_source import PackedSource
from gemma4_lora.data._padding_efficiency import PaddingEfficiency
from gemma4_lora.data._show import show
from gemma4_lora.data._show import Shown
from gemma4_lora.data._text_task import TextTask
from gemma4_lora.data.preferences._preference_task import PreferenceTask
from gemma4_lora.data.preferences._unpaired_task import UnpairedTask
from gemma4_lora.data.sources._files import Files
from gemma4_lora.data.sources._files import Jsonl

__all__ = [
    'ChatTask',
    'DropLongPrompts',
    'Files',
    'Jsonl',
    'PackedSource',
    'PaddingEfficiency',
    'PreferenceTask',
    'show',
    'Shown',
    'TextTask',
    'UnpairedTask',
]
