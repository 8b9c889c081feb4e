"""One table: what training takes by us, by hand, and by others.

```sh
uv run --extra dev python -m tests.benchmarks --gemma-head=PATH --peft-python=PATH
```

`--gemma-head` is a checkout of gemma's git HEAD, or a Python that has it;
`--peft-python` a Python with torch, transformers and PEFT. Without them their
columns say "not measured". `--gpu` prints another table, for one GPU of 80 GB or
more: see `tests/benchmarks/gpu.py`.

Each implementation is a process of its own. Steps and batches are taken in
turns, a few by each, and ratios are medians over rounds: other load on the
machine slows all of them alike. In parentheses: how many times ours.

* `by hand`: `tests/benchmarks/by_hand.py`, with our LoRA in the model; its
  restore is Orbax's, of all leaves to the host.
* `Kauldron`: our LoRA, and Kauldron's step, loss on full logits, checkpointer.
* Steps, their operations, bytes and memory are of `sizes.CPU`; compile time is of
  `sizes.DEPTH`, with E2B's 35 layers. XLA's counts have each loop once.
* Temporaries as resident memory are what a process takes beyond what it has
  before its first step.
"""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import contextlib
import dataclasses
import os
import pathlib
import statistics
import sys
import tempfile
from typing import Any

from tests.benchmarks import sizes
from tests.benchmarks import worker

COLUMNS = {
    'ours': 'ours',
    'by_hand': 'by hand',
    'kauldron': 'Kauldron',
    'gemma_head': 'gemma HEAD',
    'peft': 'PEFT',
}
# What else to compile E2B's depth with: name of the row, settings of
# `g4.nn.LoRA`.
SETTINGS: dict[str, dict[str, Any]] = {
    'scan_layers=True': {'scan_layers': True},
}
PARTS = ('steps', 'data', 'checkpoints', 'compile')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
  """A line of the table.

  Attributes:
    name: With the unit.
    values: By column, one for each round; of those that were measured.
  """

  name: str
  values: dict[str, list[float]]

  def cell(self, column: str) -> str:
    if column not in self.values:
      return 'not measured'
    middle = statistics.median(self.values[column])
    value = f'{middle:,.0f}' if middle >= 100 else f'{middle:.3g}'
    if column == 'ours' or 'ours' not in self.values:
      return value
    return f'{value} ({self.ratio(column):.2f})'

  def ratio(self, column: str) -> float:
    """Median over rounds, of a column over ours."""
    pairs = zip(self.values[column], self.values['ours'], strict=True)
    return statistics.median(x / y for x, y in pairs)


def command(name: str, size: sizes.Size, others: dict[str, str]) -> list[str]:
  """Returns what starts a worker."""
  if name == 'peft':
    script = str(pathlib.Path(__file__).parent / 'peft_worker.py')
    return [others['peft'], script, size.to_json()]
  python = sys.executable
  if name == 'gemma_head' and not os.path.isdir(others[name]):
    python = others[name]
  return [python, '-m', 'tests.benchmarks.worker', name, size.to_json()]


def start(name: str, size: sizes.Size, others: dict[str, str]) -> worker.Worker:
  """Starts a worker on the CPU."""
  environment = dict(os.environ, JAX_PLATFORMS='cpu')
  if name == 'gemma_head' and os.path.isdir(others[name]):
    environment['PYTHONPATH'] = os.path.abspath(others[name])
  return worker.Worker(command(name, size, others), **environment)


class Table:
  """Rows, which are shown as they come."""

  def __init__(self, columns: Sequence[str], rounds: int):
    self.rows: list[Row] = []
    self._columns = columns
    self._rounds = rounds

  def add(self, name: str, values: dict[str, list[float]]) -> None:
    row = Row(name=name, values=values)
    self.rows.append(row)
    print(self._line(row), file=sys.stderr, flush=True)

  def turns(self, workers: dict[str, worker.Worker], what: str, **kwargs: Any):
    """Asks all workers in turns; returns answers by column."""
    answers: dict[str, list[Any]] = {name: [] for name in workers}
    for i in range(self._rounds):
      names = list(workers)
      for name in names[i % len(names) :] + names[: i % len(names)]:
        answers[name].append(workers[name].ask(what, **kwargs))
    return answers

  def _line(self, row: Row) -> str:
    cells = [row.name, *(row.cell(x) for x in COLUMNS)]
    return f'| {" | ".join(cells)} |'

  def __str__(self) -> str:
    head = f'| | {" | ".join(COLUMNS.values())} |'
    return '\n'.join(
        [head, '|---' * (len(COLUMNS) + 1) + '|', *map(self._line, self.rows)]
    )


def _pick(answers: dict[str, Any], key: str, unit: float = 1.0):
  """One number of each answer, or of each of its rounds."""
  picked = {}
  for name, got in answers.items():
    got = got if isinstance(got, list) else [got]
    picked[name] = [x[key] / unit for x in got]
  return picked


def measure(
    *,
    size: sizes.Size,
    depth: sizes.Size,
    others: dict[str, str],
    rounds: int,
    only: Sequence[str] = PARTS,
) -> Table:
  """Measures all, and returns the table.

  Args:
    size: Of steps and checkpoints.
    depth: Of what is compiled.
    others: `gemma_head` and `peft`: where they are.
    rounds: How often each is asked.
    only: Of `PARTS`.
  """
  names = [x for x in COLUMNS if x not in ('gemma_head', 'peft') or x in others]
  table = Table(names, rounds)
  with contextlib.ExitStack() as stack:

    def started(name, size=size):
      made = start(name, size, others)
      stack.callback(made.close)
      return made

    if 'steps' in only:
      workers = {name: started(name) for name in names}
      _steps(table, workers)
      for made in workers.values():
        made.close()
    if 'data' in only:
      chats = [x for x in names if x not in ('by_hand', 'peft')]
      got = table.turns({x: started(x) for x in chats}, 'data', num=50)
      table.add('data, examples/s', _pick(got, 'examples_per_s'))
    if 'checkpoints' in only:
      with tempfile.TemporaryDirectory() as folder:
        _checkpoints(table, names, started, pathlib.Path(folder))
    if 'compile' in only:
      _compile(table, names, lambda name: started(name, depth))
  return table


def _steps(table: Table, workers: dict[str, worker.Worker]) -> None:
  compiled = {
      name: made.ask('compile')
      for name, made in workers.items()
      if name != 'peft'
  }
  begun = {name: made.ask('begin') for name, made in workers.items()}
  got = table.turns(workers, 'run', num=2)
  table.add('step, s', _pick(got, 'seconds', 2))
  table.add('float operations, G', _pick(compiled, 'flops', 1e9))
  table.add('bytes accessed, GB', _pick(compiled, 'bytes', 1e9))
  table.add('temporaries, MB: XLA', _pick(compiled, 'temporaries_mb'))
  table.add('temporaries, MB: resident', _pick(begun, 'temporaries_mb'))


def _checkpoints(
    table: Table,
    names: Sequence[str],
    started: Callable[..., worker.Worker],
    folder: pathlib.Path,
) -> None:
  answers: dict[str, list[Any]] = {}
  for name in names:
    released = folder / ('peft' if name == 'peft' else 'released')
    if not released.exists():
      writer = started('peft' if name == 'peft' else 'ours')
      writer.ask('write', folder=str(released))
      writer.close()
    made = started(name)
    workdir = str(folder / f'run_{name}')
    answers[name] = [made.ask('start', released=str(released), workdir=workdir)]
    made.close()
  saving = {k: v for k, v in answers.items() if k != 'by_hand'}
  table.add('restore, s', _pick(answers, 'restore_s'))
  table.add('restore, peak MB', _pick(answers, 'restore_peak_mb'))
  table.add('checkpoint, MB', _pick(saving, 'checkpoint_mb'))
  table.add('save, s', _pick(saving, 'save_s'))


def _compile(
    table: Table,
    names: Sequence[str],
    started: Callable[..., worker.Worker],
) -> None:

  def compiled(name, **settings):
    made = started(name)
    got = made.ask('compile', **settings)
    made.close()
    return got | {'seconds': got['trace_s'] + got['compile_s']}

  def add(name, answers):
    table.add(f'{name}, s', _pick(answers, 'seconds'))
    table.add(f'{name}, CPU s', _pick(answers, 'cpu_s'))

  answers = {name: compiled(name) for name in names if name != 'peft'}
  add('trace and compile', answers)
  for name, settings in SETTINGS.items():
    answers = answers | {'ours': compiled('ours', **settings)}
    add(f'ours with `{name}`', answers)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
      '--gemma-head', help='checkout, or Python that has it', metavar='PATH'
  )
  parser.add_argument(
      '--peft-python', help='Python that has PEFT', metavar='PATH'
  )
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
  parser.add_argument('--gpu', action='store_true', help='E2B on one GPU')
  parser.add_argument(
      '--tiny', action='store_true', help='to see whether it runs'
  )
  args = parser.parse_args()
  if args.gpu:
    from tests.benchmarks import gpu

    print(gpu.table(sizes.TINY if args.tiny else sizes.E2B))
    return
  others = {'gemma_head': args.gemma_head, 'peft': args.peft_python}
  print(
      measure(
          size=sizes.TINY if args.tiny else sizes.CPU,
          depth=sizes.TINY if args.tiny else sizes.DEPTH,
          others={k: v for k, v in others.items() if v},
          rounds=args.rounds,
          only=args.only,
      )
  )


if __name__ == '__main__':
  main()
