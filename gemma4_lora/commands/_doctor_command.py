"""`doctor`: for its help. `__main__` runs it before click is imported."""

import click

from gemma4_lora.doctor import _command


@click.command(epilog='\b\nExample:\n  gemma4_lora doctor')
def doctor() -> int:
  """Say what is wrong with this installation, and what to type.

  Versions, devices, credentials, memory and disk. The exit status is 1 if
  something is wrong. It imports nothing that may be broken.
  """
  return _command.main([])
