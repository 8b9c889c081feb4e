"""Data transforms for Gemma 4: chat examples to tokens and loss masks."""

from gemma4_lora.data._chat_task import ChatTask
from gemma4_lora.data._filters import DropLongPrompts
