"""This machine: memory, threads, devices, folders; and paths of users."""

from gemma4_lora.host._paths import is_local
from gemma4_lora.host._paths import path
