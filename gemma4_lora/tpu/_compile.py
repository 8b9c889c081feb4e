"""Compiles a config's own training step."""

import dataclasses
import re
import time
from typing import Any

import jax
from kauldron import kd

from gemma4_lora.tpu import _shapes
from gemma4_lora.tpu.program import _cost
from gemma4_lora.tpu.program import _exchanges
from gemma4_lora.tpu.program import _hlo

_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}
_AMOUNT = r'\((\d+(?:\.\d+)?)([KMGT]?)i?B?\)'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
  """The compiler's memory of a step, in bytes per device.

  Attributes:
    arguments: State and batch, in the layouts of the chip.
    outputs: Results that are not written over its arguments.
    temporaries: Memory that it uses while it runs.
    in_use: The most memory in use at a time, by the compiler; it may be less
      than the sum of these. XLA's CPU compiler counts no temporaries in it.
  """

  arguments: int
  outputs: int
  temporaries: int
  in_use: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TooLarge:
  """The compiler's refusal.

  Attributes:
    wanted: Bytes that the step needs on a device, arguments included.
    available: Available bytes. None if the message has none.
    message: The compiler's first line.
  """

  wanted: int | None
  available: int | None
  message: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A training step that compiled, or did not fit.

  Attributes:
    memory: None if it did not fit.
    cost: None if it did not fit.
    collectives: Exchanges between devices.
    too_large: The refusal, None if it fits.
    trace_seconds: Python's part, and the program before XLA.
    compile_seconds: XLA's.
  """

  memory: Memory | None = None
  cost: _cost.Cost | None = None
  collectives: tuple[_exchanges.Collective, ...] = ()
  too_large: TooLarge | None = None
  trace_seconds: float
  compile_seconds: float


def compile_step(
    trainer: kd.train.Trainer,
    shapes: _shapes.Shapes,
    *,
    with_logging: bool = False,
) -> Step:
  """Compiles the step as `kd.train.Trainer.train()` would.

  Args:
    trainer: Resolved within `_mesh.on_devices`.
    shapes: Its arguments.
    with_logging: Whether to compile the step that also returns losses, metrics
      and summaries; most steps do not.

  Raises:
    jax.errors.JaxRuntimeError: The compiler failed for another reason than
      memory.
  """
  begin = time.monotonic()
  lowered = trainer.trainstep.step.lower(
      trainer.trainstep,
      shapes.state,
      shapes.batch,
      return_losses=with_logging,
      return_metrics=with_logging,
      return_summaries=with_logging,
      checkify_error_categories=trainer.checkify_error_categories,
  )
  traced = time.monotonic()
  try:
    compiled = lowered.compile()
  except jax.errors.JaxRuntimeError as e:
    too_large = parse_too_large(str(e))
    if too_large is None:
      raise
    return Step(
        too_large=too_large,
        trace_seconds=traced - begin,
        compile_seconds=time.monotonic() - traced,
    )
  seconds = time.monotonic() - traced
  program = _hlo.Program(compiled.as_text() or '')
  num_devices = kd.sharding.DEVICES_MESH.size
  return Step(
      memory=_memory(compiled),
      cost=_cost.cost_of(compiled, program),
      collectives=_exchanges.collectives(program, num_devices)
      if num_devices > 1
      else (),
      trace_seconds=traced - begin,
      compile_seconds=seconds,
  )


def parse_too_large(message: str) -> TooLarge | None:
  """Returns the wanted and available bytes; None for another error.

  libtpu 0.0.50 calls all memory of a program "HLO temporaries", arguments
  included: a program with 40 GiB of arguments and nothing else wants 40.00G.

  Args:
    message: Message of the compiler's error.
  """
  if 'RESOURCE_EXHAUSTED' not in message:
    return None
  wanted = re.search(rf'(?:required|temporaries|[Uu]sed)\D*{_AMOUNT}', message)
  available = re.search(rf'available\D*{_AMOUNT}', message)
  if wanted is None:
    wanted = re.search(r'Used (\d+(?:\.\d+)?)([KMGT]?)i?B? of', message)
    available = re.search(r' of (\d+(?:\.\d+)?)([KMGT]?)i?B? hbm', message)
  return TooLarge(
      wanted=_amount(wanted),
      available=_amount(available),
      message=message.strip().splitlines()[0],
  )


def _amount(match: re.Match[str] | None) -> int | None:
  return int(float(match[1]) * _UNITS[match[2]]) if match else None


def _memory(compiled: Any) -> Memory:
  stats = compiled.memory_analysis()
  return Memory(
      arguments=stats.argument_size_in_bytes,
      # The state is updated in place.
      outputs=stats.output_size_in_bytes - stats.alias_size_in_bytes,
      temporaries=stats.temp_size_in_bytes,
      in_use=stats.peak_memory_in_bytes,
  )
