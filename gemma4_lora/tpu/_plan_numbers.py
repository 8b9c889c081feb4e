"""The numbers of a plan, and values derived from them."""

from collections.abc import Mapping
import dataclasses
import enum

from gemma4_lora.tpu import _chips
from gemma4_lora.tpu import _compile
from gemma4_lora.tpu.program import _cost
from gemma4_lora.tpu.program import _exchanges


class Bound(enum.StrEnum):
  """What the roofline's step waits for."""

  COMPUTE = 'compute'
  MEMORY = 'memory'
  LINKS = 'links'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanNumbers:
  """A `g4.tpu.Plan`, before it is rendered.

  All sizes and rates are per device.

  Attributes:
    topology: `'v6e:2x4'`.
    chip: Memory and rates of each device.
    num_devices: How many there are.
    batch: Examples in a step, over all devices.
    length: Tokens per sequence. None where the model reads no tokens.
    argument_bytes: Bytes of the step's arguments by their shapes: `'weights'`,
      `'lora'`, `'optimizer'`, `'batch'`, `'other'`.
    memory: The compiler's numbers. None if the step does not fit.
    too_large: The compiler's refusal. None if the step compiled.
    cost: Float operations and bytes. None if the step does not fit.
    collectives: Exchanges between devices, by kind.
    trace_seconds: Python's part of compiling.
    compile_seconds: XLA's part.
    advice: What to change, most promising first.
    notes: Notes on the numbers.
    sequences: Sequences per example: 2 of a preference pair.
    cached: Whether the numbers are from an earlier run.
  """

  topology: str
  chip: _chips.Chip
  num_devices: int
  batch: int
  length: int | None
  argument_bytes: Mapping[str, int]
  memory: _compile.Memory | None
  too_large: _compile.TooLarge | None
  cost: _cost.Cost | None
  collectives: tuple[_exchanges.Collective, ...]
  trace_seconds: float
  compile_seconds: float
  advice: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()
  sequences: int = 1
  cached: bool = False

  @property
  def fits(self) -> bool:
    """Whether the step compiled and fits the memory."""
    limit = self.hbm_bytes
    if self.memory is None:
      return False
    return limit is None or self.peak_bytes <= limit

  @property
  def hbm_bytes(self) -> int | None:
    """Memory that a program may use; the compiler's own word if it gave it."""
    if self.too_large is not None and self.too_large.available:
      return self.too_large.available
    return self.chip.hbm_bytes

  @property
  def padding_bytes(self) -> int:
    """Size that padding in the chip's memory adds to the arguments."""
    if self.memory is None:
      return 0
    return max(0, self.memory.arguments - sum(self.argument_bytes.values()))

  @property
  def temporary_bytes(self) -> int | None:
    """Memory of the step beside its arguments and outputs."""
    if self.memory is not None:
      return self.memory.temporaries
    if self.too_large is None or self.too_large.wanted is None:
      return None
    return max(0, self.too_large.wanted - sum(self.argument_bytes.values()))

  @property
  def peak_bytes(self) -> int:
    """Arguments, outputs and temporaries; what a refused step wanted."""
    if self.memory is not None:
      memory = self.memory
      return memory.arguments + memory.outputs + memory.temporaries
    wanted = self.too_large.wanted if self.too_large else None
    return wanted or sum(self.argument_bytes.values())

  @property
  def num_tokens(self) -> int:
    """Tokens in a step, over all devices."""
    return self.batch * self.sequences * (self.length or 1)

  @property
  def seconds_by_bound(self) -> Mapping[Bound, float]:
    """Least time of a step for each thing that it waits for, at peak rates."""
    if self.cost is None:
      return {}
    chip, sent = self.chip, sum(x.wire_bytes for x in self.collectives)
    amounts = {
        Bound.COMPUTE: (self.cost.flops, chip.flops_per_s),
        Bound.MEMORY: (self.cost.bytes, chip.hbm_bytes_per_s),
        Bound.LINKS: (sent, chip.ici_bytes_per_s),
    }
    return {
        bound: amount / rate
        for bound, (amount, rate) in amounts.items()
        if rate
    }

  @property
  def step_seconds(self) -> float | None:
    """The roofline's time of a step: no real one is shorter."""
    return max(self.seconds_by_bound.values(), default=None)

  @property
  def bound(self) -> Bound | None:
    """What the roofline's step waits for."""
    seconds = self.seconds_by_bound
    return max(seconds, key=seconds.__getitem__) if seconds else None

  @property
  def tokens_per_second(self) -> float | None:
    """Rate of all devices together in the roofline's time, an upper bound."""
    seconds = self.step_seconds
    return self.num_tokens / seconds if seconds else None
