"""Damages files by chance, and counts what their readers make of them.

```sh
python -m tests.fuzz 10000 [--seed=1] [--first=0]
```

Cases run in a process of their own, which is started again if one ends it. The
exit status is 1 if there is a fault.
"""

import argparse
import collections
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading

# The limit of a case, and the start of a process on a machine with much to do.
_SILENT_S = 600


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser('tests.fuzz')
  parser.add_argument('count', type=int)
  parser.add_argument('--seed', type=int, default=0)
  parser.add_argument('--first', type=int, default=0)
  parser.add_argument('--child', action='store_true')
  args = parser.parse_args(argv)
  stop = args.first + args.count
  if args.child:
    _run(args.first, stop, args.seed)
    return 0
  counts, number, faults = collections.Counter(), args.first, []
  while number < stop:
    number = _watch(number, stop, args.seed, counts, faults)
  print(dict(counts))
  for fault in faults:
    print(fault)
  return 1 if faults else 0


def _run(first: int, stop: int, seed: int) -> None:
  """Runs cases; a line before and a line behind each."""
  import jax

  jax.config.update('jax_platforms', 'cpu')
  from tests.lib import fuzzed_readers

  with tempfile.TemporaryDirectory() as work:
    cases = fuzzed_readers.Cases(pathlib.Path(work), seed=seed)
    for number in range(first, stop):
      print(f'@case {number}', flush=True)
      found = cases.run(number)
      text = found.text if found.kind in fuzzed_readers.FAULTS else ''
      text = ' | '.join(text.strip().splitlines()[-6:])
      print(f'@done {found.kind} {found.case} {text}'.rstrip(), flush=True)


def _watch(
    first: int, stop: int, seed: int, counts: collections.Counter, faults: list
) -> int:
  """Runs cases in a process; returns the number of the next."""
  command = [sys.executable, '-m', 'tests.fuzz', f'{stop - first}', '--child']
  command += [f'--first={first}', f'--seed={seed}']
  child = subprocess.Popen(
      command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
  )
  lines: queue.Queue[str | None] = queue.Queue()

  def pump():
    for line in child.stdout:
      lines.put(line)
    lines.put(None)

  threading.Thread(target=pump, daemon=True).start()
  number, kind = first - 1, 'abort'
  while True:
    try:
      line = lines.get(timeout=_SILENT_S)
    except queue.Empty:
      kind = 'hang'
      child.kill()
      break
    if line is None:
      break
    if line.startswith('@case'):
      number = int(line.split()[1])
    elif line.startswith('@done'):
      _, found, *_ = line.split()
      counts[found] += 1
      if found in ('silent', 'bare', 'hang'):
        faults.append(line.strip())
        print(line.strip(), flush=True)
      elif number % 500 == 0:
        print(number, dict(counts), flush=True)
      if number == stop - 1:
        child.wait()
        return stop
  child.wait()
  if number < first:
    raise SystemExit('The process does not start.')
  counts[kind] += 1
  faults.append(f'{kind} at case {number}, exit status {child.returncode}')
  print(faults[-1], flush=True)
  return number + 1


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
