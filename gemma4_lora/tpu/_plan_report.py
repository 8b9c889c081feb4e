"""A plan, as text and as HTML."""

from collections.abc import Iterator
from collections.abc import Sequence
import html

from gemma4_lora.tpu import _plan_numbers

_GIB = 2**30
# Told apart also by those who see no red or green. One for each part.
_COLORS = (
    '#4477aa',
    '#66ccee',
    '#228833',
    '#ccbb44',
    '#bbbbbb',
    '#aa3377',
    '#ee6677',
)
# Can be read on light pages and on dark ones; not all know `currentColor`.
_NEUTRAL = '#888888'


def as_text(plan: _plan_numbers.PlanNumbers) -> str:
  """Returns the table, the verdict and what to change."""
  blocks = [
      [_title(plan)],
      _aligned(_memory_rows(plan)),
      _aligned(_cost_rows(plan)),
      _aligned(_collective_rows(plan)),
      [_verdict(plan), *(f'  {line}' for line in plan.advice)],
      [f'note: {line}' for line in _notes(plan)],
  ]
  return '\n\n'.join('\n'.join(block) for block in blocks if block)


def as_html(plan: _plan_numbers.PlanNumbers) -> str:
  """Returns the same with a bar for the memory of one device."""
  tables = ''.join(
      _table(rows)
      for rows in (
          _memory_rows(plan),
          _cost_rows(plan),
          _collective_rows(plan),
      )
      if rows
  )
  advice = ''.join(f'<li>{html.escape(line)}</li>' for line in plan.advice)
  notes = '<br>'.join(html.escape(f'note: {x}') for x in _notes(plan))
  return (
      f'<p><b>{html.escape(_title(plan))}</b></p>{bar(plan)}'
      f'<p><b>{html.escape(_verdict(plan))}</b></p><ul>{advice}</ul>{tables}'
      f'<p>{notes}</p>'
  )


def bar(plan: _plan_numbers.PlanNumbers, *, width: int = 640) -> str:
  """Returns an SVG: parts of the memory of one device, and its limit.

  Args:
    plan: The plan to draw.
    width: Width in pixels.
  """
  parts = [(name, num) for name, num in _memory_items(plan) if num]
  unit = _column_unit(plan)
  limit = plan.hbm_bytes
  largest = max(limit or 0, sum(num for _, num in parts), 1)
  scale = width / largest / 1.02
  shapes, x = [], 0.0
  for i, (name, num) in enumerate(parts):
    color = _COLORS[i % len(_COLORS)]
    title = html.escape(f'{name}: {_in_unit(num, unit)}')
    shapes.append(
        f'<rect x="{x:.1f}" y="18" width="{num * scale:.1f}" height="32"'
        f' fill="{color}"><title>{title}</title></rect>'
    )
    left, top = 4 + 210 * (i % 3), 72 + 20 * (i // 3)
    shapes.append(
        f'<rect x="{left}" y="{top - 10}" width="10" height="10"'
        f' fill="{color}"/><text x="{left + 15}" y="{top}">{title}</text>'
    )
    x += num * scale
  if limit:
    at = limit * scale
    shapes.append(
        f'<line x1="{at:.1f}" y1="12" x2="{at:.1f}" y2="56" stroke="{_NEUTRAL}"'
        f' stroke-width="2"/><text x="{at:.1f}" y="10" text-anchor="end">'
        f'{html.escape(f"{plan.chip.name}: {_gib(limit)}")}</text>'
    )
  height = 80 + 20 * ((len(parts) - 1) // 3)
  return (
      f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}"'
      f' height="{height}" fill="{_NEUTRAL}" font-family="sans-serif"'
      ' font-size="12">'
      f'{"".join(shapes)}</svg>'
  )


def _title(plan: _plan_numbers.PlanNumbers) -> str:
  length = '' if plan.length is None else f' x {plan.length} tokens'
  devices = f'{plan.num_devices} device{"s" * (plan.num_devices > 1)}'
  batch = (
      f'{plan.batch} x {plan.sequences}' if plan.sequences > 1 else plan.batch
  )
  return f'{plan.topology} ({devices}), batch {batch}{length}'


def _verdict(plan: _plan_numbers.PlanNumbers) -> str:
  limit = plan.hbm_bytes
  peak = _gib(plan.peak_bytes)
  if limit is None:
    return f'compiles: {peak}; how much memory there is, is not known'
  share = f'{peak} of {_gib(limit)} ({plan.peak_bytes / limit:.0%})'
  if plan.fits:
    return f'fits: {share}'
  if plan.too_large is not None and plan.too_large.wanted is None:
    share = plan.too_large.message
  return f'does not fit: {share}'


def _memory_items(plan: _plan_numbers.PlanNumbers) -> Iterator[tuple[str, int]]:
  """Gives what the peak is the sum of."""
  of = plan.argument_bytes
  yield 'weights', of['weights']
  yield 'LoRA', of['lora']
  yield 'optimizer', of['optimizer']
  yield 'batch', of['batch']
  yield 'layout padding, rest', of['other'] + plan.padding_bytes
  if plan.memory is not None:
    yield 'outputs', plan.memory.outputs
  if plan.temporary_bytes is not None:
    yield 'temporaries', plan.temporary_bytes


def _memory_rows(plan: _plan_numbers.PlanNumbers) -> list[tuple[str, str, str]]:
  unit = _column_unit(plan)
  rows = [('memory per device', '', '')]
  rows += [(name, _in_unit(num, unit), '') for name, num in _memory_items(plan)]
  if plan.memory is None and plan.temporary_bytes is not None:
    name, num, _ = rows.pop()
    rows.append((name, num, 'what the compiler wanted, less the rows above'))
  rows.append(('peak', _in_unit(plan.peak_bytes, unit), 'sum of the above'))
  if plan.memory is not None and 0 < plan.memory.in_use < plan.peak_bytes:
    if plan.memory.in_use > plan.memory.temporaries:
      in_use = _in_unit(plan.memory.in_use, unit)
      rows.append(('in use at once', in_use, "the compiler's count"))
  if plan.hbm_bytes is not None:
    source = plan.chip.hbm_source
    if plan.too_large is not None and plan.too_large.available:
      source = "the compiler's own word"
    limit = _in_unit(plan.hbm_bytes, unit)
    rows.append((f'{plan.chip.name} has', limit, source))
  return rows


def _cost_rows(plan: _plan_numbers.PlanNumbers) -> list[tuple[str, str, str]]:
  cost, chip = plan.cost, plan.chip
  if cost is None:
    return []
  rows = [('one step, per device', '', '')]
  for name, unit, value, once in (
      ('float operations', 'FLOP', cost.flops, cost.flops_once),
      ('bytes accessed', 'B', cost.bytes, cost.bytes_once),
  ):
    loops = '' if value == once else f'{_si(once, unit)} with loops run once'
    rows.append((name, _si(value, unit), loops))
  rates = {
      'compute': (chip.flops_per_s, 'FLOP/s'),
      'memory': (chip.hbm_bytes_per_s, 'B/s'),
      'links': (chip.ici_bytes_per_s, 'B/s'),
  }
  for bound, seconds in plan.seconds_by_bound.items():
    if not seconds:
      continue
    rate, unit = rates[bound]
    rows.append(
        (f'time for {bound}', _seconds(seconds), f'at {_si(rate or 0, unit)}')
    )
  if plan.step_seconds is not None and plan.tokens_per_second is not None:
    rows.append(
        (
            'roofline step',
            _seconds(plan.step_seconds),
            f'the longest of them ({plan.bound}); a real one takes longer',
        )
    )
    rows.append(
        (
            'roofline tokens/s',
            f'{plan.tokens_per_second:,.0f}',
            f'{plan.num_tokens:,} tokens in a step, all devices',
        )
    )
  return rows


def _collective_rows(
    plan: _plan_numbers.PlanNumbers,
) -> list[tuple[str, str, str]]:
  if not plan.collectives:
    return []
  rows = [('between devices, per step', '', '')]
  for x in plan.collectives:
    rows.append((x.kind, _si(x.bytes, 'B'), f'{x.count:,} of them'))
  sent = sum(x.wire_bytes for x in plan.collectives)
  return [*rows, ('sent by a device', _si(sent, 'B'), 'if in rings')]


def _notes(plan: _plan_numbers.PlanNumbers) -> Iterator[str]:
  yield from plan.notes
  if plan.cost is not None and plan.cost.unknown_loops:
    yield (
        f'{plan.cost.unknown_loops} loops run an unknown number of times: they'
        ' are counted once'
    )
  if plan.cost is not None and plan.cost.kernels:
    yield (
        f'{plan.cost.kernels:,} calls of TPU kernels: what they read and write is'
        ' counted, their float operations and what stands in for them are not'
    )
  if plan.chip.source:
    yield f'peak rates of {plan.chip.name}: {plan.chip.source}'
  elif plan.cost is not None:
    yield f'no peak rates are known of {plan.chip.name}: no roofline'
  when = 'earlier, from the cache' if plan.cached else 'now'
  yield (
      f'compiled {when}: {plan.trace_seconds:.0f} s to trace,'
      f' {plan.compile_seconds:.0f} s to compile'
  )


def _aligned(rows: Sequence[tuple[str, str, str]]) -> list[str]:
  """Names and remarks to the left, numbers to the right."""
  if not rows:
    return []
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  title, *rest = rows
  lines = [title[0], '-' * max(len(title[0]), widths[0] + 2 + widths[1])]
  for name, number, remark in rest:
    line = f'{name.ljust(widths[0])}  {number.rjust(widths[1])}  {remark}'
    lines.append(line.rstrip())
  return lines


def _table(rows: Sequence[tuple[str, str, str]]) -> str:
  title, *rest = rows
  body = ''.join(
      f'<tr><td>{html.escape(name)}</td>'
      f'<td style="text-align:right">{html.escape(number)}</td>'
      f'<td>{html.escape(remark)}</td></tr>'
      for name, number, remark in rest
  )
  head = f'<tr><th colspan="3">{html.escape(title[0])}</th></tr>'
  return f'<table><thead>{head}</thead><tbody>{body}</tbody></table>'


def _gib(num_bytes: float) -> str:
  """`8.73 GiB`, and smaller units for tiny models."""
  return _in_unit(num_bytes, _unit(num_bytes))


def _column_unit(plan: _plan_numbers.PlanNumbers) -> tuple[str, int]:
  """One for all rows. For tiny models, GiB would show only the peak."""
  return ('GiB', _GIB) if plan.peak_bytes >= _GIB else ('MiB', 2**20)


def _unit(largest: float) -> tuple[str, int]:
  for name, size in (('GiB', _GIB), ('MiB', 2**20), ('KiB', 2**10)):
    if abs(largest) >= size / 10:
      return name, size
  return 'B', 1


def _in_unit(num_bytes: float, unit: tuple[str, int]) -> str:
  name, size = unit
  if 0 < num_bytes < size / 200:
    return f'<0.01 {name}'
  return f'{num_bytes / size:,.{2 * (size > 1)}f} {name}'


def _si(value: float, unit: str) -> str:
  """`4.79 TFLOP`, of powers of 1000."""
  for prefix, size in (('T', 1e12), ('G', 1e9), ('M', 1e6), ('k', 1e3)):
    if abs(value) >= size:
      return f'{value / size:.2f} {prefix}{unit}'
  return f'{value:.0f} {unit}'


def _seconds(value: float) -> str:
  return f'{value * 1e3:.2f} ms' if value < 1 else f'{value:.2f} s'
