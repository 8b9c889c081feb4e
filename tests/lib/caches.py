"""The folder that keeps compiled programs and bytecode between test runs."""

import atexit
import hashlib
import importlib.metadata
import os
import pathlib
import platform
import shutil
import sys
import tempfile
import time

VARIABLE = 'GEMMA4_LORA_TEST_CACHE'

_PACKAGES = ('flax', 'gemma', 'jax', 'jaxlib', 'kauldron')
_CPU_INFO = pathlib.Path('/proc/cpuinfo')
_UNUSED_DAYS = 14


def folder() -> pathlib.Path:
  """Returns the folder of this run; child processes inherit the variable."""
  value = os.environ.get(VARIABLE)
  if value is None:
    path = _of_versions()
    _remove_unused(path.parent)
  elif value == '':
    path = pathlib.Path(tempfile.mkdtemp(prefix='gemma4_lora_tests_'))
    atexit.register(shutil.rmtree, path, ignore_errors=True)
  else:
    path = pathlib.Path(value)
  path.mkdir(parents=True, exist_ok=True)
  os.utime(path)
  os.environ[VARIABLE] = os.fspath(path)
  return path


def keep_bytecode(path: pathlib.Path) -> None:
  """Lets child processes import what was compiled, not compile it again.

  Only where `PYTHONDONTWRITEBYTECODE` keeps Python from writing next to the
  sources: TensorFlow, gemma and Kauldron then take three times as long to
  import, in every process.
  """
  if not sys.dont_write_bytecode or sys.pycache_prefix:
    return
  sys.dont_write_bytecode = False
  sys.pycache_prefix = os.fspath(path)
  os.environ.pop('PYTHONDONTWRITEBYTECODE', None)
  os.environ['PYTHONPYCACHEPREFIX'] = sys.pycache_prefix


def _of_versions() -> pathlib.Path:
  """Names a folder by all that compiled programs depend on."""
  key = [f'{x}-{importlib.metadata.version(x)}' for x in _PACKAGES]
  key += [platform.python_version(), platform.machine(), *_cpu_flags()]
  key += [os.environ.get('XLA_FLAGS', '')]
  name = hashlib.sha256('\n'.join(key).encode()).hexdigest()[:16]
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'gemma4_lora' / 'tests' / name


def _cpu_flags() -> list[str]:
  if not _CPU_INFO.exists():
    return []
  lines = _CPU_INFO.read_text().splitlines()
  return sorted({line for line in lines if line.startswith(('flags', 'Feat'))})


def _remove_unused(parent: pathlib.Path) -> None:
  """Removes folders of versions that no run has used for two weeks."""
  oldest = time.time() - _UNUSED_DAYS * 24 * 3600
  for path in parent.glob('*/'):
    if path.stat().st_mtime < oldest:
      shutil.rmtree(path, ignore_errors=True)
