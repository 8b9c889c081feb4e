r"""Runs a fast half of the tests at the bounds of what we depend on.

```sh
python tests/platforms/matrix.py lowest
```

Rows: `lowest` and `newest`, of what `pyproject.toml` allows, on Python 3.12, and
`python3.13`, the newest there. `--gemma` and `--kauldron` take folders of their git
HEAD. Prints one row of the table in `README.md` beside this file.
"""

import argparse
import datetime
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import run  # noqa: E402

_ROWS = {
    'lowest': ('3.12', 'lowest-direct'),
    'newest': ('3.12', 'highest'),
    'python3.13': ('3.13', 'highest'),
}
# What stands on what others release: flax's modules, Orbax, tensorstore, grain,
# Kauldron's trainer, gemma's names. No model that takes long to compile.
_TESTS = (
    'tests/gemma4',
    'tests/targets',
    'tests/quant',
    'tests/optim',
    'tests/losses/metrics_test.py',
    'tests/data',
    'tests/nn/wrapper',
    'tests/nn/enabled_test.py',
    'tests/hf/save_peft_test.py',
    'tests/ckpts/skip_lora_test.py',
    'tests/ckpts/lora_checkpointer_test.py',
    'tests/train/train_step_test.py',
    'tests/train_test.py',
)


def main() -> None:
  """Prints one row."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('row', choices=_ROWS)
  parser.add_argument('--uv', default='uv', help='Path of uv.')
  parser.add_argument('--gemma', help="Folder of gemma's git HEAD.")
  parser.add_argument('--kauldron', help="Folder of Kauldron's git HEAD.")
  parser.add_argument('--tests', nargs='*', default=_TESTS)
  args = parser.parse_args()
  version, resolution = _ROWS[args.row]
  with tempfile.TemporaryDirectory(prefix='matrix_') as name:
    folder = pathlib.Path(name)
    copy = run.clone(folder)
    env = folder / 'env'
    run.command(args.uv, 'venv', '--quiet', '--python', version, env)
    python = env / 'bin' / 'python'
    install = (args.uv, 'pip', 'install', '--quiet', '--python', python)
    run.command(*install, '--resolution', resolution, f'{copy}[eval]')
    # Bounds of these are not ours.
    run.command(*install, 'pytest>=9', 'pyyaml', 'datasets>=5.2')
    heads = [x for x in (args.gemma, args.kauldron) if x]
    if heads:
      run.command(*install, '--no-deps', *heads)
    tests = [x for x in args.tests if (copy / x).exists()]
    begin = time.monotonic()
    done = subprocess.run(
        [
            # One `-q` is in `addopts`: a second would hide the last line.
            *(python, '-m', 'pytest', '-p', 'no:cacheprovider'),
            *('--durations=0', '--tb=short', *tests),
        ],
        cwd=copy,
        env=run.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - begin
    lines = done.stdout.strip().splitlines()
    last = [x for x in lines if ' passed' in x or ' failed' in x][-1:]
    failed = [x for x in lines if x.startswith(('FAILED', 'ERROR', 'E '))]
    if done.returncode:
      print(*failed[:60], done.stderr[-2000:], sep='\n', file=sys.stderr)
    today = datetime.date.today().isoformat()
    has = run.versions(python)
    of = 'git HEAD, ' if heads else ''
    print(
        f'| {args.row} | {version} | {today} | {run.few(has)}'
        f' | {of}{has["gemma"]}, {has["kauldron"]}'
        f' | {last[0].strip("= ") if last else "no tests ran"} |'
        f' {seconds:.0f} s |',
        flush=True,
    )
    sys.exit(done.returncode)


if __name__ == '__main__':
  main()
