"""Float operations and bytes of a step, loops counted as often as they run."""

from collections.abc import Iterator
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax

from gemma4_lora.tpu.program import _hlo

# XLA's names.
_FLOPS, _BYTES = 'flops', 'bytes accessed'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """Cost of one step on one device.

  XLA counts the body of a loop once, so that a chunked loss or a scan over
  layers would seem almost free.

  Attributes:
    flops: Float operations, each loop as often as it runs.
    bytes: Read and written in memory, likewise.
    flops_once: Value of `compiled.cost_analysis()['flops']`.
    bytes_once: Value of `compiled.cost_analysis()['bytes accessed']`.
    unknown_loops: How many loops are counted once, as the program does not say
      how often they run.
    kernels: How often a step calls kernels for TPUs. XLA counts what a kernel
      reads and writes, but not its float operations. Its substitute on other
      devices is not counted.
  """

  flops: float
  bytes: float
  flops_once: float
  bytes_once: float
  unknown_loops: int
  kernels: int


def cost_of(compiled: Any, program: _hlo.Program) -> Cost:
  """Returns the cost of a compiled program.

  Args:
    compiled: A `jax.stages.Compiled`.
    program: Its text.
  """
  once: Any = compiled.cost_analysis() or {}
  flops, num_bytes = once.get(_FLOPS, 0.0), once.get(_BYTES, 0.0)
  more, unknown = _repeated(program)
  less = _stand_ins(program)
  return Cost(
      flops=flops + more[_FLOPS] - less[_FLOPS],
      bytes=num_bytes + more[_BYTES] - less[_BYTES],
      flops_once=flops,
      bytes_once=num_bytes,
      unknown_loops=unknown,
      kernels=_num_kernels(program),
  )


def _num_kernels(program: _hlo.Program) -> int:
  return sum(
      program.times.get(name, 0)
      for name, instructions in program.computations.items()
      for x in instructions
      if x.is_kernel
  )


def _stand_ins(program: _hlo.Program) -> Mapping[str, float]:
  """Returns what XLA counts beyond the kernels: it takes the largest branch."""
  less = {_FLOPS: 0.0, _BYTES: 0.0}
  for name, choice, kernel in program.choices:
    costs = {x: _as_entry(program, x) for x in choice.called}
    for key in less:
      largest = max(cost[key] for cost in costs.values())
      less[key] += program.times.get(name, 0) * (largest - costs[kernel][key])
  return less


def _repeated(program: _hlo.Program) -> tuple[Mapping[str, float], int]:
  """Returns the cost of loops beyond their first round, and unknown loops."""
  more = {_FLOPS: 0.0, _BYTES: 0.0}
  once = program.with_trips(1).times
  for body in {loop.body for loop in program.loops}:
    rounds = program.times.get(body, 0) - once.get(body, 0)
    if not rounds:  # For many loops, the number of rounds is unknown.
      continue
    # Without the loops in it, which count for themselves.
    own = _own_cost(program, body)
    for key in more:
      more[key] += rounds * own[key]
  unknown = [loop for loop in program.loops if loop.trips is None]
  return more, sum(loop.parent in program.times for loop in unknown)


def _own_cost(program: _hlo.Program, name: str) -> Mapping[str, float]:
  """Cost of a computation, less that of the loops in it."""
  cost = dict(_as_entry(program, name))
  for body in _loops_in(program, name):
    inner = _as_entry(program, body)
    for key in cost:
      cost[key] -= inner[key]
  return cost


def _loops_in(program: _hlo.Program, name: str) -> Iterator[str]:
  """Gives bodies of loops in a computation, not of those in other loops."""
  for instruction in program.computations.get(name, ()):
    if instruction.opcode == 'while':
      yield instruction.attribute('body') or ''
    else:
      for called in instruction.called:
        if called not in program.stand_ins:
          yield from _loops_in(program, called)


def _as_entry(program: _hlo.Program, name: str) -> Mapping[str, float]:
  """XLA's own count of a computation: of a module that begins with it."""
  # No public API counts a program that is not compiled here.
  from jaxlib import _hlo as hlo  # pylint: disable=g-import-not-at-top
  from jaxlib import _jax  # pylint: disable=g-import-not-at-top

  module = hlo.hlo_module_from_text(program.text_of(name))
  client = jax.devices('cpu')[0].client
  found = _jax.hlo_module_cost_analysis(client, module)
  return {key: found.get(key, 0.0) for key in (_FLOPS, _BYTES)}
