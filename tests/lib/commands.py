"""Commands, in this process, which is faster than in a shell."""

import dataclasses
import sys

from absl import flags
from absl import logging
import pytest


@dataclasses.dataclass(frozen=True)
class Done:
  """What a command left: as `subprocess.run`."""

  returncode: int
  stdout: str
  stderr: str


@pytest.fixture(name='run_command')
def _run_command(capsys, monkeypatch):
  """Runs a command in this process, with flags of its own."""
  # Not above: the process that hands out tests need not import Kauldron.
  from gemma4_lora import __main__ as main
  from gemma4_lora.jobs.command_line import _arguments

  verbosity = logging.get_verbosity()
  logger = logging.get_absl_logger()
  level = logger.level

  def run(*args):
    # The flag of the config looks there for its overrides.
    monkeypatch.setattr(sys, 'argv', ['gemma4_lora', *args])
    code = 0
    capsys.readouterr()
    defined = set(flags.FLAGS)
    try:
      main.main(_arguments.parse(sys.argv))
    except SystemExit as e:
      code = int(e.code or 0)
    finally:  # `flagsaver` cannot save the flag of a config that is not given.
      for name in set(flags.FLAGS) - defined:
        delattr(flags.FLAGS, name)
      for name in defined:
        if flags.FLAGS[name].present:
          flags.FLAGS[name].unparse()
    return Done(code, *capsys.readouterr())

  yield run
  logging.set_verbosity(verbosity)
  logger.setLevel(level)  # Which `set_verbosity` set, too.
