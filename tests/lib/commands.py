"""Commands, in this process, which is faster than in a shell."""

import dataclasses

from absl import logging
import pytest


@dataclasses.dataclass(frozen=True)
class Done:
  """What a command left: as `subprocess.run`."""

  returncode: int
  stdout: str
  stderr: str


@pytest.fixture(name='run_command')
def _run_command(capsys):
  """Runs a command in this process."""
  # Not above: the process that hands out tests need not import Kauldron.
  from gemma4_lora import __main__ as main

  verbosity = logging.get_verbosity()
  logger = logging.get_absl_logger()
  level = logger.level

  def run(*args):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
      main.main(args)
    return Done(int(ended.value.code or 0), *capsys.readouterr())

  yield run
  logging.set_verbosity(verbosity)
  logger.setLevel(level)  # Which `set_verbosity` set, too.
