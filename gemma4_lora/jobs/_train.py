"""`python -m gemma4_lora train`: Kauldron's command, on one host or several."""

from collections.abc import Sequence
import sys

from absl import app
import jax

from gemma4_lora.jobs import _distributed
from gemma4_lora.jobs import _overrides


def run(argv: Sequence[str]) -> None:
  """Joins the other hosts, if there are any, and is Kauldron's main from there.

  Args:
    argv: Kauldron's flags: `--cfg=...`, `--cfg.workdir=...`, `--eval_names=...`;
      `--workdir=...` is `--cfg.workdir=...`.
  """
  try:
    argv = _overrides.for_kauldron(argv)
    _distributed.initialize()
  except ValueError as e:
    print(f'gemma4_lora: {e}', file=sys.stderr)
    sys.exit(1)
  # Looks at jax's devices when it is imported: too late to join anyone.
  from kauldron import main  # pylint: disable=g-import-not-at-top

  jax.config.config_with_absl()
  # Where the flag of the config looks for what changes it.
  sys.argv[1:] = argv
  # The module stays that of this command: worker processes of the data import
  # it anew, and Kauldron's would look for devices in each.
  app.run(main.main, argv=sys.argv)
