"""Versions against bounds, as they are and as they are broken."""

from importlib import metadata
import re
import subprocess
import sys

import pytest

from gemma4_lora.doctor import _versions

_GOOD = {
    'jax': '0.12.0.1',
    'jaxlib': '0.12.0',
    'ml-dtypes': '0.5.1',
    'protobuf': '6.33.6',
    'sentencepiece': '0.2.1',
}
_REQUIRES = [
    'jax>=0.11.2,<0.13',
    'ml_dtypes>=0.5,<1',
    'pytest>=9; extra=="dev"',
]


def _wrong(python='3.12.1', requires=_REQUIRES, **changes):
  versions = {
      k: v
      for k, v in (
          _GOOD | {k.replace('_', '-'): v for k, v in changes.items()}
      ).items()
      if v is not None
  }
  findings = _versions.check(
      versions, requires, requires_python='>=3.12,<3.14', python=python
  )
  return [str(x) for x in findings if not x.ok]


def test_all_is_well():
  assert not _wrong()
  assert not _wrong(jax_cuda12_plugin='0.12.0', jax_cuda12_pjrt='0.12.0')
  assert not _wrong(sentencepiece='0.2.2', protobuf='7.35.1')


@pytest.mark.parametrize(
    ('changes', 'says'),
    [
        (
            {'python': '3.10.12'},
            'Python: 3.10.12, of .* uv venv --seed --python 3.12',
        ),
        (
            {'jax': '0.7.2', 'jaxlib': '0.7.2'},
            r'jax: 0.7.2, of .*pip install "jax<0.13,>=0.11.2"',
        ),
        ({'ml_dtypes': None}, 'ml_dtypes: not installed, .*pip install "ml_dt'),
        (
            {'jax_cuda12_plugin': '0.7.2'},
            r'jax-cuda12-plugin: 0.7.2 beside jax 0.12.0.1.*"jax\[cuda12\]==0.12'
            '.0.1", and restart',
        ),
        (
            {'tensorflow': '2.18.0', 'tensorflow_cpu': '2.21.0'},
            'tensorflow: 2.18.0 and tensorflow-cpu 2.21.0 are mixed.*uninstall',
        ),
        ({'jaxlib': '0.11.2'}, 'jaxlib: 0.11.2 beside .*"jaxlib==0.12.0.1"'),
        (
            {'sentencepiece': '0.2.2'},
            'protobuf: 6.33.6 beside sentencepiece 0.2.2, which is built for'
            ' protobuf 7.*pip install "sentencepiece==0.2.1"',
        ),
    ],
)
def test_what_is_wrong_says_what_to_type(changes, says):
  (line,) = _wrong(**changes)
  assert line.startswith('WRONG')
  assert re.search(says, line), line


def test_bounds_are_those_of_the_project():
  """In a clone, of its `pyproject.toml`; a wheel has the same in its metadata."""
  python, requires = _versions.bounds()
  assert python.startswith('>=3.12')
  names = {x.split('>')[0].split('=')[0].split('[')[0] for x in requires}
  assert {'jax', 'gemma', 'kauldron', 'sentencepiece'} <= names
  assert _versions.installed()['jax'] == metadata.version('jax')


def test_nothing_that_may_be_broken_is_imported(tmp_path):
  """It works where jax, absl and all above them raise."""
  for name in ('jax', 'absl', 'kauldron', 'gemma', 'tensorflow', 'etils'):
    (tmp_path / f'{name}.py').write_text('raise ImportError("broken")')
  argv = ['doctor', '--flag']
  code = (
      f'import sys; sys.path.insert(0, {str(tmp_path)!r});'
      f'sys.argv[1:] = {argv}; import runpy;'
      'runpy.run_module("gemma4_lora", run_name="__main__")'
  )
  done = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=False
  )
  assert done.returncode == 1
  assert done.stderr == "gemma4_lora: No such option '--flag'.\n"
