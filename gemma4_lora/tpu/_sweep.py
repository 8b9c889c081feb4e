"""The largest batch and the largest length that fit."""

from collections.abc import Callable
import dataclasses
import html
import os

from kauldron import kd
from kauldron import konfig

from gemma4_lora.tpu import _make
from gemma4_lora.tpu import _plan

# Lengths are tried in steps of it, as the chip's tiles are so wide.
_LENGTH_UNIT = 128
HEADER = 'batch   length       peak  temporaries  tokens/s (roofline)'

_Plans = Callable[[int], _plan.Plan]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
  """The sizes that fit on a topology. Prints and renders as a table.

  Attributes:
    plans: One of each size that was tried, in that order.
    largest_batch: Largest batch at the config's length; None if nothing fits.
    largest_length: Largest length of a batch of one sequence per device.
  """

  plans: tuple[_plan.Plan, ...]
  largest_batch: _plan.Plan | None
  largest_length: _plan.Plan | None

  @property
  def verdict(self) -> tuple[str, ...]:
    """The results."""
    lines = []
    for what, found in (
        ('batch', self.largest_batch),
        ('length', self.largest_length),
    ):
      if found is None:
        lines.append(f'largest {what}: nothing that was tried fits')
        continue
      lines.append(
          f'largest {what} that fits: {found.batch} x {found.length}{self._up(found)}'
      )
    return tuple(lines)

  def _up(self, found: _plan.Plan) -> str:
    """The next larger size that does not fit."""
    for name in ('batch', 'length'):
      other = 'length' if name == 'batch' else 'batch'
      larger = [
          getattr(x, name)
          for x in self.plans
          if not x.fits
          and getattr(x, other) == getattr(found, other)
          and getattr(x, name) > getattr(found, name)
      ]
      if larger:
        return f' ({name} {min(larger)} does not)'
    return ''

  def __str__(self) -> str:
    return '\n'.join([HEADER, *map(row, self.plans), '', *self.verdict])

  __repr__ = __str__

  def _repr_html_(self) -> str:
    verdict = '<br>'.join(html.escape(line) for line in self.verdict)
    table = html.escape('\n'.join([HEADER, *map(row, self.plans)]))
    return f'<pre>{table}</pre><p>{verdict}</p>'


def row(plan: _plan.Plan) -> str:
  """Returns a plan as a line of the table."""
  temporaries = plan.temporary_bytes
  rate = plan.tokens_per_second
  cells = [
      f'{plan.batch:5d}',
      f'{plan.length or 0:7d}',
      f'{plan.peak_bytes / 2**30:6.2f} GiB',
      f'{temporaries / 2**30:7.2f} GiB' if temporaries is not None else '?' * 8,
      f'{rate:9,.0f}' if rate else '        -',
      'fits' if plan.fits else 'does not fit',
  ]
  return '  '.join(cells)


def sweep(
    cfg: konfig.ConfigDict | kd.train.Trainer,
    *,
    topology: str = 'v6e:1x1',
    batch: int | None = None,
    length: int | None = None,
    with_logging: bool = False,
    cache: os.PathLike[str] | str | bool | None = True,
    max_size: int = 2**22,
    refine: int = 3,
    on_plan: Callable[[_plan.Plan], None] = lambda plan: None,
) -> Sweep:
  """Returns the largest batch and the largest length that fit.

  Sizes first double, or grow faster if there is room, until one does not fit;
  then the gap is narrowed. Each size compiles once.

  Args:
    cfg: See `plan`.
    topology: See `plan`.
    batch: First batch to try; default: the config's.
    length: The largest batch's length; default: the config's.
    with_logging: See `plan`.
    cache: See `plan`.
    max_size: Upper limit of batch and length.
    refine: How often to narrow the gap.
    on_plan: Called with each plan when it is made.

  Raises:
    PlanError: As from `plan`, or the model reads no tokens.
  """
  tried: dict[tuple[int | None, int | None], _plan.Plan] = {}

  def at(batch: int | None, length: int | None) -> _plan.Plan:
    if (batch, length) in tried:
      return tried[batch, length]
    made = _make.plan(
        cfg,
        topology=topology,
        batch=batch,
        length=length,
        with_logging=with_logging,
        cache=cache,
    )
    if (made.batch, made.length) not in tried:
      on_plan(made)
    tried[made.batch, made.length] = made
    return made

  first = at(batch, length)
  unit = first.num_devices
  by_batch = _largest(
      lambda size: at(size, first.length),
      start=first.batch,
      unit=unit,
      max_size=max_size,
      refine=refine,
  )
  by_length = None
  if first.length is not None:
    by_length = _largest(
        lambda size: at(unit, size),
        start=first.length,
        unit=min(_LENGTH_UNIT, first.length),
        max_size=max_size,
        refine=refine,
    )
  return Sweep(
      plans=tuple(tried.values()),
      largest_batch=by_batch,
      largest_length=by_length,
  )


def _largest(
    at: _Plans, *, start: int, unit: int, max_size: int, refine: int
) -> _plan.Plan | None:
  """Returns the plan of the largest size that fits, of multiples of a unit."""
  size = max(unit, start // unit * unit)
  low, high = None, None
  while size <= max_size:
    made = at(size)
    if made.fits:
      low = size, made
      if high is not None:
        break
      size *= _growth(made, max_size // size)
    else:
      high = size, made
      if low is not None or size == unit:
        break
      size = max(unit, size // 2 // unit * unit)
  if low is None or high is None:
    return low[1] if low else None
  for _ in range(refine):
    size = _between(low, high, unit)
    if size is None:
      break
    made = at(size)
    if made.fits:
      low = size, made
    else:
      high = size, made
  return low[1]


def _growth(made: _plan.Plan, largest: int) -> int:
  """Returns a power of two by which there is room to grow, 2 at least."""
  limit, temporaries = made.hbm_bytes, made.temporary_bytes
  factor = 2
  if limit is None or not temporaries:
    return factor
  room = limit - (made.peak_bytes - temporaries)
  while factor * 2 <= largest and factor * 2 * temporaries <= room:
    factor *= 2
  return factor


def _between(low, high, unit: int) -> int | None:
  """Returns a size between one that fits and one that does not.

  Where a line through both meets the limit, but not too near to either.
  """
  (size, fits), (too_large, refused) = low, high
  if too_large - size <= unit:
    return None
  share = 0.5
  limit, rise = fits.hbm_bytes, refused.peak_bytes - fits.peak_bytes
  if limit and rise > 0:
    share = min(0.9, max(0.1, (limit - fits.peak_bytes) / rise))
  guess = size + int((too_large - size) * share) // unit * unit
  return min(max(guess, size + unit), too_large - unit)
