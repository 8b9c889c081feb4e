"""`python -m gemma4_lora plan`."""

from collections.abc import Callable
import sys
from typing import Any

import jax

from gemma4_lora.tpu import _errors
from gemma4_lora.tpu import _make
from gemma4_lora.tpu import _sweep
from gemma4_lora.tpu import _topology

_FITS, _DOES_NOT_FIT, _NO_ANSWER = 0, 1, 2


def run(
    cfg: Any,
    *,
    topology: str,
    with_sweep: bool,
    batch: int | None,
    length: int | None,
    with_logging: bool,
    cache: str | None,
    say: Callable[[str], None] = lambda text: None,
) -> int:
  """Prints a plan, or a sweep as it goes.

  Args:
    cfg: A `konfig.ConfigDict`.
    topology: See `g4.tpu.plan`.
    with_sweep: Whether to search the largest sizes that fit.
    batch: See `g4.tpu.plan`.
    length: See `g4.tpu.plan`.
    with_logging: See `g4.tpu.plan`.
    cache: A folder, `'none'`, or None for the user's own.
    say: Told what is being done; an empty text before something is printed.

  Returns:
    The exit status: 0 if it fits, 1 if it does not, 2 if there is no answer.
  """
  try:
    _set_up(topology)
    options = dict(
        topology=topology,
        batch=batch,
        length=length,
        with_logging=with_logging,
        cache={None: True, '': False, 'none': False}.get(cache, cache),
    )
    if not with_sweep:
      say(f'traces and compiles the step for {topology}, for minutes')
      plan = _make.plan(cfg, **options)
      say('')
      print(plan)
      return _FITS if plan.fits else _DOES_NOT_FIT
    print(_sweep.HEADER, flush=True)

    def show(plan):
      say('')
      print(_sweep.row(plan), flush=True)
      say('compiles the next')

    say(f'compiles several steps for {topology}, for minutes each')
    found = _sweep.sweep(cfg, on_plan=show, **options)
    say('')
  except _errors.PlanError as e:
    print(f'gemma4_lora plan: {e}', file=sys.stderr)
    return _NO_ANSWER
  print('', *found.verdict, sep='\n')
  fits = any(plan.fits for plan in found.plans)
  return _FITS if fits else _DOES_NOT_FIT


def _set_up(topology: str) -> None:
  """Keeps jax from looking for unneeded devices."""
  chip = _topology.chip_name(topology)
  if chip != 'gpu':
    # Otherwise jax would allocate memory of a local GPU.
    jax.config.update('jax_platforms', 'cpu')
  if chip == 'cpu' and ':' in topology:
    number = max(1, int(topology.partition(':')[2]))
    jax.config.update('jax_num_cpu_devices', number)
