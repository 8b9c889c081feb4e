r"""Installs gemma4_lora where its users are, and uses it there.

```sh
python tests/platforms/run.py colab_cpu
```

builds the environment of a place from the package registry by uv, and does in it what
a user does, by the pip that is there: runs the notebooks' install cell, or in a
shell the README's lines. Then trains the quickstart for 20 steps and saves a PEFT
folder. Prints one row of the table in `README.md` beside this file, and on stderr
what pip warned of.

An accelerator that is not here is not used: jax is told `cpu`.
"""

import argparse
from collections.abc import Sequence
import datetime
import functools
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import places  # noqa: E402

_ROOT = pathlib.Path(__file__).parents[2]
_HERE = pathlib.Path(__file__).parent
_WAYS = ('cell', 'pip', 'run')
_SAYS = 'The cell says:'
_KERNEL = f"""
import importlib, json, sys
for name in json.loads(sys.argv[1]):
  importlib.import_module(name)
from IPython.core.interactiveshell import InteractiveShell
done = InteractiveShell.instance().run_cell(sys.argv[2])
if not isinstance(done.error_in_exec, RuntimeError):
  done.raise_error()
print('\\n{_SAYS}', done.error_in_exec or '')
"""
_SHOWN = ('jax', 'flax', 'protobuf', 'tensorflow', 'sentencepiece', 'numpy')


def main() -> None:
  """Prints the rows of one place."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('place', choices=places.PLACES)
  parser.add_argument('--uv', default='uv', help='Path of uv.')
  parser.add_argument(
      '--way',
      choices=_WAYS,
      help="Default: the cell in a notebook, else the README's lines for pip.",
  )
  parser.add_argument(
      '--by-uv',
      action='store_true',
      help='Run the install cell by uv, which is faster than pip.',
  )
  parser.add_argument('--quick', action='store_true', help='Only import.')
  args = parser.parse_args()
  place = places.PLACES[args.place]
  way = args.way or ('cell' if place.notebook else 'pip')
  install = {
      'cell': functools.partial(_by_cell, by_uv=args.by_uv),
      'pip': _by_pip,
      'run': _by_run,
  }[way]
  with tempfile.TemporaryDirectory(prefix='platform_') as folder:
    row = install(place, pathlib.Path(folder), uv=args.uv, quick=args.quick)
  today = datetime.date.today().isoformat()
  print(f'| {args.place} | {way} | {place.python} | {today} | {row} |')


def _by_cell(
    place: places.Place,
    folder: pathlib.Path,
    *,
    uv: str,
    by_uv: bool,
    quick: bool,
) -> str:
  """Installs as the notebooks do."""
  python = _build(place, folder, uv=uv)
  before = versions(python)
  begin = time.monotonic()
  said = _cell(
      python, clone(folder), imported=place.imported, uv=uv if by_uv else None
  )
  seconds = time.monotonic() - begin
  after = versions(python)
  used = _use(python, folder, quick=quick)
  return ' | '.join(
      [
          'uv' if by_uv else f'pip {before["pip"]}',
          few(before),
          few(after),
          said.partition(', and ')[0] or 'no restart',
          f'{seconds:.0f} s',
          used,
      ]
  )


def _by_pip(
    place: places.Place, folder: pathlib.Path, *, uv: str, quick: bool
) -> str:
  """Types the README's lines for pip in a shell."""
  there = _build(place, folder, uv=uv)
  copy = clone(folder)
  typed = [
      next(
          x
          for x in (_ROOT / 'README.md').read_text().splitlines()
          if x.startswith('pip install ') and words in x
      )
      for words in ('uv venv', 'gemma4_lora[')
  ]
  lines = _without_bytecode(
      ' && '.join(typed).replace('git+<this repository>', f'file://{copy}')
  )
  begin = time.monotonic()
  said = command(
      *('bash', '-ec', f'{lines}\npython -c "import sys; print(sys.prefix)"'),
      cwd=folder,
      PATH=f'{there.parent}:{os.environ["PATH"]}',
  )
  seconds = time.monotonic() - begin
  _shows(said)
  python = pathlib.Path(said.strip().splitlines()[-1]) / 'bin' / 'python'
  own = subprocess.check_output([python, '-V'], text=True).split()[1]
  return ' | '.join(
      [
          f'pip {versions(there)["pip"]}, {versions(python)["pip"]}',
          'none',
          f'{few(versions(python))}, Python {own}',
          'no restart',
          f'{seconds:.0f} s',
          _use(python, folder, quick=quick),
      ]
  )


def _by_run(
    place: places.Place, folder: pathlib.Path, *, uv: str, quick: bool
) -> str:
  """Runs the README's first line, and then the same environment's Python."""
  there = _build(place, folder, uv=uv)
  copy = clone(folder)
  line = next(
      x
      for x in (_ROOT / 'README.md').read_text().splitlines()
      if 'kauldron.main --cfg=configs/quickstart.py' in x and '.uv' in x
  )
  line = re.sub('--cfg.workdir=\\S+', f'--cfg.workdir={folder}/first', line)
  begin = time.monotonic()
  command(
      *('bash', '-ec', f'{line} --cfg.num_train_steps=20'),
      cwd=copy,
      PATH=f'{there.parent}:{os.environ["PATH"]}',
  )
  seconds = time.monotonic() - begin
  python = copy / '.venv' / 'bin' / 'python'
  own = subprocess.check_output([python, '-V'], text=True).split()[1]
  return ' | '.join(
      [
          f'pip {versions(there)["pip"]} for uv',
          'none',
          f'{few(versions(python))}, Python {own}',
          'no restart',
          f'{seconds:.0f} s with the run',
          _use(python, folder, quick=quick),
      ]
  )


def _build(
    place: places.Place, folder: pathlib.Path, *, uv: str
) -> pathlib.Path:
  """Builds the environment that is there before us; returns its Python."""
  env = folder / 'env'
  command(uv, 'venv', '--quiet', '--seed', '--python', place.python, env)
  python = env / 'bin' / 'python'
  pip = [f'pip=={place.pip}'] if place.pip else []
  if pip or place.packages:
    install = (uv, 'pip', 'install', '--quiet', '--python', python)
    command(*install, *place.packages, *pip)
  return python


def _cell(
    python: pathlib.Path,
    copy: pathlib.Path,
    *,
    imported: Sequence[str],
    uv: str | None,
) -> str:
  """Runs the first cell of a notebook in a kernel that has imported modules.

  Args:
    python: Python of the place.
    copy: What to install.
    imported: Modules that the kernel has imported before.
    uv: What to install with instead of pip.

  Returns:
    What the cell says of a restart; empty if none is needed.
  """
  notebook = json.loads((_ROOT / 'colabs/lora_finetuning.ipynb').read_text())
  source = next(
      ''.join(cell['source'])
      for cell in notebook['cells']
      if cell['cell_type'] == 'code'
  )
  source = source.replace(
      'git+https://github.com/OWNER/gemma4_lora', f'file://{copy}'
  )
  if uv:
    source = re.sub(r'%pip (\w+)', rf'!{uv} pip \1 --python {python}', source)
    source = source.replace(' --yes', '')
  else:
    source = _without_bytecode(source)
  said = command(python, '-I', '-c', _KERNEL, json.dumps(imported), source)
  if 'gemma4-lora' not in versions(python):
    sys.exit(f'The install cell installs nothing.\n{said[-3000:]}')
  _shows(said)
  return said.strip().splitlines()[-1].removeprefix(_SAYS).strip()


def _without_bytecode(lines: str) -> str:
  """Returns them without bytecode of what is never imported: minutes here."""
  return lines.replace('pip install', 'pip install --no-compile')


def _shows(said: str) -> None:
  """Shows what a user sees in spite of `--quiet`: pip's warnings, an error."""
  print(said.strip(), file=sys.stderr, flush=True)


def clone(folder: pathlib.Path) -> pathlib.Path:
  """Copies the files of this repository that git has."""
  copy = folder / 'clone'
  files = subprocess.check_output(
      ['git', 'ls-files', '-z'], cwd=_ROOT, text=True
  )
  for name in files.rstrip('\0').split('\0'):
    if not (_ROOT / name).exists():
      continue
    (copy / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_ROOT / name, copy / name)
  return copy


def _use(python: pathlib.Path, folder: pathlib.Path, *, quick: bool) -> str:
  begin = time.monotonic()
  run = folder / 'use'
  run.mkdir()
  if quick:
    code = 'from gemma4_lora import g4; g4.nn.LoRA; g4.hf.save_peft'
    command(python, '-c', code, cwd=run)
    return f'imported: {time.monotonic() - begin:.0f} s'
  command(python, _HERE / '_use.py', folder / 'clone', cwd=run)
  seconds = time.monotonic() - begin
  return f'20 steps, PEFT folder: {seconds:.0f} s; {_doctor(python, cwd=run)}'


def _doctor(python: pathlib.Path, *, cwd: pathlib.Path) -> str:
  """Returns what `doctor` finds wrong, but for a bucket out of reach."""
  done = subprocess.run(
      [python, '-m', 'gemma4_lora', 'doctor'],
      cwd=cwd,
      env=environment(),
      capture_output=True,
      text=True,
      check=False,
  )
  if not done.stdout.startswith('OK '):
    sys.exit(f'doctor: {done.stdout[-1000:]}\n{done.stderr[-4000:]}')
  wrong = [
      x
      for x in done.stdout.splitlines()
      if x.startswith('WRONG') and 'gs://' not in x
  ]
  return f'doctor: {"; ".join(wrong) or "OK"}'


def versions(python: pathlib.Path) -> dict[str, str]:
  code = (
      'import importlib.metadata as m, json; print(json.dumps('
      '{d.name.lower().replace("_", "-"): d.version for d in m.distributions()}))'
  )
  return json.loads(
      subprocess.check_output([python, '-I', '-c', code], text=True)
  )


def few(has: dict[str, str]) -> str:
  plugins = ('jax-cuda12-plugin', 'jax-cuda13-plugin')
  names = [*_SHOWN, 'tensorflow-cpu', 'libtpu', *plugins]
  return ', '.join(f'{x} {has[x]}' for x in names if x in has)


def environment(**changes: str) -> dict[str, str]:
  """Returns variables that know nothing of the environment that runs this."""
  hidden = ('VIRTUAL_ENV', 'PYTHONPATH')
  inherited = {k: v for k, v in os.environ.items() if k not in hidden}
  return inherited | {'JAX_PLATFORMS': 'cpu'} | changes


def command(*words: object, cwd: object = None, **changes: str) -> str:
  """Returns what a command prints; exits with the end of it if it fails."""
  done = subprocess.run(
      [str(x) for x in words],
      cwd=cwd,
      env=environment(**changes),
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
      check=False,
  )
  if done.returncode:
    sys.exit(
        f'{" ".join(map(str, words))[:200]}: exit status {done.returncode}\n'
        f'{done.stdout[-5000:]}'
    )
  return done.stdout


if __name__ == '__main__':
  main()
