r"""Installs gemma4_lora where its users are, and uses it there.

```sh
python tests/platforms/run.py colab_cpu
```

builds the environment of a place from the package registry by uv, runs the
notebooks' install cell in it, then trains the quickstart for 20 steps and saves a
PEFT folder; then does the same by the README's line on top. Each prints one row of
the table in `README.md` beside this file.

An accelerator that is not here is not used: jax is told `cpu`.
"""

import argparse
import datetime
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
_SHOWN = ('jax', 'flax', 'protobuf', 'tensorflow', 'sentencepiece', 'numpy')


def main() -> None:
  """Prints the rows of one place."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('place', choices=places.PLACES)
  parser.add_argument('--uv', default='uv', help='Path of uv.')
  parser.add_argument(
      '--way', choices=['cell', 'readme'], help='Default: both of them.'
  )
  args = parser.parse_args()
  place = places.PLACES[args.place]
  ways = {'cell': _by_cell, 'readme': _by_readme}
  if not place.pip:
    del ways['cell']
  for way, install in ways.items():
    if args.way not in (None, way):
      continue
    with tempfile.TemporaryDirectory(prefix='platform_') as folder:
      row = install(place, pathlib.Path(folder), uv=args.uv)
    today = datetime.date.today().isoformat()
    print(f'| {args.place} | {way} | {place.python} | {today} | {row} |')


def _by_cell(place: places.Place, folder: pathlib.Path, *, uv: str) -> str:
  """Installs as the notebooks do."""
  env = folder / 'env'
  _run(uv, 'venv', '--quiet', '--seed', '--python', place.python, env)
  python = env / 'bin' / 'python'
  _run(uv, 'pip', 'install', '--quiet', '--python', python, *place.packages)
  before = _versions(python)
  begin = time.monotonic()
  for requirement in _cell(python, _clone(folder)):
    _run(python, '-m', 'pip', 'install', '--quiet', requirement)
  seconds = time.monotonic() - begin
  after = _versions(python)
  changed = {x for x in before if before[x] != after.get(x)}
  owners = {'numpy': 'numpy', 'google.protobuf': 'protobuf'}
  restart = [x for x in place.imported if owners[x] in changed]
  used = _use(python, folder)
  return ' | '.join(
      [
          _few(before),
          _few(after),
          f'restart: {", ".join(restart)} replaced'
          if restart
          else 'no restart',
          f'{seconds:.0f} s',
          used,
      ]
  )


def _by_readme(place: places.Place, folder: pathlib.Path, *, uv: str) -> str:
  """Runs the README's line on top, and then the same environment's Python."""
  bootstrap = folder / 'bootstrap'
  _run(uv, 'venv', '--quiet', '--seed', '--python', place.python, bootstrap)
  clone = _clone(folder)
  line = next(
      x
      for x in (_ROOT / 'README.md').read_text().splitlines()
      if 'kauldron.main --cfg=configs/quickstart.py' in x and '.uv' in x
  )
  line = re.sub('--cfg.workdir=\\S+', f'--cfg.workdir={folder}/first', line)
  begin = time.monotonic()
  _run(
      *('bash', '-ec', f'{line} --cfg.num_train_steps=20'),
      cwd=clone,
      PATH=f'{bootstrap}/bin:{os.environ["PATH"]}',
  )
  seconds = time.monotonic() - begin
  python = clone / '.venv' / 'bin' / 'python'
  own = subprocess.check_output([python, '-V'], text=True).split()[1]
  return ' | '.join(
      [
          'none',
          f'{_few(_versions(python))}, Python {own}',
          'no restart',
          f'{seconds:.0f} s with the run',
          _use(python, folder),
      ]
  )


def _cell(python: pathlib.Path, clone: pathlib.Path) -> list[str]:
  """Returns what the first cell of a notebook has pip install there."""
  notebook = json.loads((_ROOT / 'colabs/lora_finetuning.ipynb').read_text())
  source = next(
      ''.join(cell['source'])
      for cell in notebook['cells']
      if cell['cell_type'] == 'code'
  )
  source = re.sub(
      r'%pip install --quiet "(.*)"', r'print(f"PIP \1")', source
  ).replace('git+https://github.com/OWNER/gemma4_lora', f'file://{clone}')
  said = subprocess.check_output([python, '-c', source], text=True)
  return re.findall('^PIP (.*)$', said, re.M)


def _clone(folder: pathlib.Path) -> pathlib.Path:
  """Copies the files of this repository that git has."""
  clone = folder / 'clone'
  files = subprocess.check_output(
      ['git', 'ls-files', '-z'], cwd=_ROOT, text=True
  )
  for name in files.rstrip('\0').split('\0'):
    if not (_ROOT / name).exists():
      continue
    (clone / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(_ROOT / name, clone / name)
  return clone


def _use(python: pathlib.Path, folder: pathlib.Path) -> str:
  begin = time.monotonic()
  run = folder / 'use'
  run.mkdir()
  _run(python, _HERE / '_use.py', folder / 'clone', cwd=run)
  return f'20 steps, PEFT folder: {time.monotonic() - begin:.0f} s'


def _versions(python: pathlib.Path) -> dict[str, str]:
  code = (
      'import importlib.metadata as m, json; print(json.dumps('
      '{d.name.lower(): d.version for d in m.distributions()}))'
  )
  return json.loads(subprocess.check_output([python, '-c', code], text=True))


def _few(versions: dict[str, str]) -> str:
  names = [*_SHOWN, 'tensorflow-cpu', 'libtpu', 'jax-cuda12-plugin']
  return ', '.join(f'{x} {versions[x]}' for x in names if x in versions)


def _run(*command: object, cwd: object = None, **environment: str) -> None:
  """Runs a command; raises with the end of what it says if it fails."""
  # A kernel knows nothing of the environment that runs this.
  hidden = ('VIRTUAL_ENV', 'PYTHONPATH')
  inherited = {k: v for k, v in os.environ.items() if k not in hidden}
  done = subprocess.run(
      [str(x) for x in command],
      cwd=cwd,
      env=inherited | {'JAX_PLATFORMS': 'cpu'} | environment,
      capture_output=True,
      text=True,
      check=False,
  )
  if done.returncode:
    sys.exit(
        f'{" ".join(map(str, command))[:200]}: exit status {done.returncode}\n'
        f'{done.stdout[-1000:]}\n{done.stderr[-4000:]}'
    )


if __name__ == '__main__':
  main()
