"""Executes the notebooks in `colabs/`, and makes their outputs comparable.

```sh
python -m tests.lib.notebooks lora_finetuning
python -m tests.lib.notebooks --check
```

The first executes the notebooks that are named, or all, and writes the outputs into
them. They are committed so that GitHub shows them. What is of one machine or one
moment is left out: paths, progress bars, times of execution. The second compares
them with what is committed, numbers aside, also where `colabs_test.py` trains less.
"""

from collections.abc import Iterator
import contextlib
import difflib
import os
import pathlib
import re
import sys
import tempfile
from typing import Any

import jupyter_client
import nbclient
import nbformat

COLABS = pathlib.Path(__file__).parent.parent.parent / 'colabs'
# Where notebooks write, which is a temporary folder here.
FOLDER = '/tmp/gemma4_lora_colab'

# Lines that the first run alone prints.
_ONCE = re.compile(
    r'^(First use: training|\.\.\. done in|gemma4_lora: importing).*\n?', re.M
)
# What a model says, in each notebook that trains one.
_LEARNT = re.compile(r'^(right|WRONG|\s+(before|after|should be):).*\n?', re.M)
# The log of a training: `tests/train` tests what it says.
_LOG = re.compile(
    r'^(trains|from|data|step|Starting training|Disabling pygrain)\b.*\n?', re.M
)
# Progress bars.
_WIDGET = 'application/vnd.jupyter.widget-view+json'
_NUMBER = re.compile(r'[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?')


def names() -> list[str]:
  return sorted(path.stem for path in COLABS.glob('*.ipynb'))


def read(name: str) -> Any:
  return nbformat.read(COLABS / f'{name}.ipynb', as_version=4)


@contextlib.contextmanager
def kernel() -> Iterator[Any]:
  """A process for several notebooks: its imports take as long as they do."""
  # Notebooks take hundreds of steps, where tests take one: programs that LLVM
  # did not optimise would cost more than it takes to optimise them.
  flags = (
      os.environ.get('XLA_FLAGS', '') + ' --xla_backend_optimization_level=1'
  )
  env = os.environ | {'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': flags}
  manager = jupyter_client.KernelManager(kernel_name='python3')
  manager.start_kernel(env=env)
  try:
    yield manager
  finally:
    manager.shutdown_kernel(now=True)


def execute(
    name: str, *, kernel: Any, folder: pathlib.Path, steps: int | None = None
) -> Any:
  """Returns the executed notebook, its outputs cleaned.

  Args:
    name: Name of the notebook.
    kernel: What runs it.
    folder: What stands for `FOLDER`.
    steps: How many steps to train; None: as many as the notebook does.
  """
  executed = read(name)
  sources = [cell.source for cell in executed.cells]
  for cell in executed.cells:
    cell.source = cell.source.replace(FOLDER, str(folder))
    if steps is not None:
      cell.source = re.sub(
          r'(num_train_steps|save_interval_steps)=\w+',
          rf'\1={steps}',
          cell.source,
      )
  # Nothing of the one before has a name.
  reset = (
      '%reset -f\nimport matplotlib.pyplot as plt\nplt.rcdefaults(); del plt'
  )
  executed.cells.insert(0, nbformat.v4.new_code_cell(reset))
  nbclient.NotebookClient(
      executed, km=kernel, timeout=3600, record_timing=False
  ).execute()
  del executed.cells[0]
  numbers = iter(range(1, len(sources) + 1))  # As of a kernel of its own.
  for cell, source in zip(executed.cells, sources, strict=True):
    cell.source = source
    if cell.cell_type == 'code':
      cell.execution_count = next(numbers)
      cell.outputs = _cleaned(cell, folder)
  executed.metadata = nbformat.from_dict(
      {
          'kernelspec': {
              'display_name': 'Python 3',
              'language': 'python',
              'name': 'python3',
          },
          'language_info': {'name': 'python'},
      }
  )
  return executed


def _cleaned(cell: Any, folder: pathlib.Path) -> list[Any]:
  """Outputs of a cell, without what is of this machine."""

  def clean(text: str) -> str:
    text = _ONCE.sub('', text.replace(str(folder), FOLDER))
    return text.replace(os.path.expanduser('~') + '/', '~/')

  outputs: list[Any] = []
  for output in cell.outputs:
    if output.output_type == 'stream':
      text = clean(output.text)
      # Progress bars and warnings are on stderr.
      if output.name == 'stderr' or not text:
        continue
      if outputs and outputs[-1].output_type == 'stream':
        outputs[-1].text += text
        continue
      output.text = text
    elif output.output_type in ('display_data', 'execute_result'):
      if _WIDGET in output.data:
        continue
      output.data = {
          kind: data if kind.startswith('image/') else clean(data)
          for kind, data in output.data.items()
      }
      output.metadata = {}
      if output.output_type == 'execute_result':
        output.execution_count = cell.execution_count
    outputs.append(output)
  return outputs


def shown(notebook: Any, *, learnt: bool = True) -> list[str]:
  """What the cells show, numbers aside, as lines; pictures by their kind alone.

  Args:
    notebook: It was executed.
    learnt: Whether to include what a trained model says.
  """
  lines = []
  for i, cell in enumerate(notebook.cells):
    for output in cell.get('outputs', ()):
      if output.output_type == 'stream':
        found = {output.name: output.text}
      elif output.output_type == 'error':
        found = {'error': output.evalue}
      else:
        found = output.data
      for kind, text in sorted(found.items()):
        if kind == 'image/png':
          lines.append(f'cell {i}: a picture')
          continue
        text = text if learnt else _LEARNT.sub('', text)
        lines += (f'cell {i}: {line}' for line in _comparable(text))
  return lines


def _comparable(text: str) -> Iterator[str]:
  """Lines in which numbers are `#`; those that differ in them alone are one."""
  text = _LOG.sub('', text)
  text = re.sub(r'compiled (now|earlier, from the cache)', 'compiled', text)
  # How large rounding is depends on how much was trained.
  text = re.sub(r'(<li>)?note: Fusing [^\n<]*(</li>)?', '', text)
  last = ''
  for line in _NUMBER.sub('#', text).splitlines():
    line = re.sub(r'[\s-]+', ' ', line).strip()
    if line and line != last:
      yield line
      last = line


def main() -> None:
  args = sys.argv[1:]
  check = '--check' in args
  chosen = [x for x in args if x != '--check'] or names()
  differs = False
  with tempfile.TemporaryDirectory() as folder, kernel() as process:
    for name in chosen:
      done = execute(name, kernel=process, folder=pathlib.Path(folder) / name)
      print(name, flush=True)
      if not check:
        nbformat.write(done, COLABS / f'{name}.ipynb')
        continue
      old, new = shown(read(name)), shown(done)
      differs |= old != new
      print('\n'.join(difflib.unified_diff(old, new, 'committed', 'now')))
  sys.exit(int(differs))


if __name__ == '__main__':
  main()
