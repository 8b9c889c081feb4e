"""Our bounds fit the places: what uv would choose there works together.

Of `run.py`, the part that a test can be: an install takes minutes and gigabytes,
its resolution seconds.
"""

from concurrent import futures
import os
import pathlib
import re
import shutil
import subprocess

import pytest

from gemma4_lora.doctor import _versions
from tests.platforms import places

_ROOT = pathlib.Path(__file__).parents[2]
_UV = os.environ.get('UV') or shutil.which('uv') or _ROOT / '.uv' / 'bin' / 'uv'
# How uv says that the registry is out of reach.
_NO_NETWORK = re.compile('client error|Failed to fetch|network connectivity')


def _resolve(
    folder: pathlib.Path, *flags: str, python: str, extra: str, there=()
) -> dict[str, str]:
  """Returns what would be installed, by name, beside what is there.

  uv keeps what its output names if the bounds allow it. So does pip with what is
  installed, unless the newest of something else asks for more.
  """
  found = folder / 'found.txt'
  folder.mkdir()
  found.write_text('\n'.join(there))
  done = subprocess.run(
      [
          *(_UV, 'pip', 'compile', '--quiet', '--no-header', '--no-annotate'),
          *('--python-version', python, '--no-python-downloads'),
          # Ubuntu 20.04's: libtpu has none for an older one.
          *('--python-platform', 'x86_64-manylinux_2_31'),
          # Users have no compilers; `promise` is Python in an archive.
          *('--only-binary', ':all:', '--no-binary', 'promise'),
          *('--extra', extra, _ROOT / 'pyproject.toml', '-o', found, *flags),
      ],
      capture_output=True,
      text=True,
      check=False,
  )
  if _NO_NETWORK.search(done.stderr):
    pytest.skip(f'no registry: {done.stderr.strip().splitlines()[-1]}')
  assert not done.returncode, done.stderr
  return dict(x.split('==') for x in found.read_text().splitlines())


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path(_UV).exists(), reason='no uv here')
def test_what_would_be_installed_works_together(tmp_path):
  """By the checks of `doctor`; lower bounds too, with nothing there."""
  cases = {
      name: dict(python=place.python, extra=extra, there=place.packages)
      for name, extra in (
          ('colab_gpu', 'cuda12'),
          ('colab_tpu', 'tpu'),
          ('kaggle', 'tpu'),
          ('gpu_image', 'cuda13'),
      )
      for place in [places.PLACES[name]]
  }
  with futures.ThreadPoolExecutor() as pool:
    lowest = pool.submit(
        _resolve,
        *(tmp_path / 'lowest', '--resolution=lowest-direct'),
        python='3.12',
        extra='cuda13',
    )
    found = {
        name: pool.submit(_resolve, tmp_path / name, **case)
        for name, case in cases.items()
    }
  requires_python, requires = _versions.bounds()
  for name, versions in {'lowest': lowest, **found}.items():
    python = cases[name]['python'] if name in cases else '3.12'
    wrong = [
        str(x)
        for x in _versions.check(
            versions.result(),
            requires,
            requires_python=requires_python,
            python=python,
        )
        if not x.ok
    ]
    assert not wrong, name
  assert lowest.result()['jax'] == '0.11.2'
  on_gpu = found['colab_gpu'].result()
  assert on_gpu['jax-cuda12-plugin'] == on_gpu['jax']
  assert found['gpu_image'].result()['jax'] == '0.11.2'
