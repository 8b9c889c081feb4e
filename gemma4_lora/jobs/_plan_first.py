"""Plans a job before it is submitted."""

import contextlib
import sys
from typing import Any

from gemma4_lora.tpu import _plan_command

_SAYS_NO = {
    1: 'the config does not fit {topology}, by the plan above.',
    2: 'there is no plan, so it is unknown if the config fits {topology}.',
}


def ask(
    cfg: Any, *, topology: str, force: bool, cache: str | None = None
) -> int:
  """Compiles a config for the chips of a job, and prints the plan to stderr.

  Args:
    cfg: A `konfig.ConfigDict`.
    topology: See `g4.tpu.plan`.
    force: Whether to go on, whatever it says.
    cache: Folder of earlier plans: see `_plan_command.run`.

  Returns:
    0 if the job may go on; else what the process exits with: 1 if it does not
    fit, 2 if there is no answer.
  """
  print(f'Planning for {topology}, which may take minutes …', file=sys.stderr)
  with contextlib.redirect_stdout(sys.stderr):  # Where the job is printed.
    status = _plan_command.run(
        cfg,
        topology=topology,
        with_sweep=False,
        batch=None,
        length=None,
        with_logging=False,
        cache=cache,
    )
  if not status:
    return 0
  says = _SAYS_NO[status].format(topology=topology)
  does = (
      'Going on: --force.'
      if force
      else (
          'Nothing was submitted. Change the config or --topology, or go on with'
          ' --force.'
      )
  )
  print(f'gemma4_lora: {says} {does}', file=sys.stderr)
  return 0 if force else status
