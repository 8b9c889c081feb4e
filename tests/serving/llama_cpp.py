"""llama.cpp, built on this machine from PyPI's source of llama-cpp-python.

The package has the converters, the sources with Gemma 4, and Gemma 4's vocabulary
with token lists for it. Nothing of it is installed: its Python module opens the
libraries that are built here.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

VERSION = '0.3.36'
_PACKAGE = f'llama_cpp_python-{VERSION}'
_TABLE = '#define GGML_GELU_FP16'


def cache() -> pathlib.Path:
  """Returns the folder where builds are kept."""
  home = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(home) / 'gemma4_lora' / 'serving'


def source() -> pathlib.Path:
  """Returns the unpacked source package, downloaded once."""
  folder = cache() / _PACKAGE
  if not folder.exists():
    cache().mkdir(parents=True, exist_ok=True)
    subprocess.run(
        [
            *('uv', 'run', '--no-project', '--with', 'pip', 'python', '-m'),
            *('pip', 'download', '--no-deps', '--no-binary=:all:', '--dest'),
            *(str(cache()), f'llama-cpp-python=={VERSION}'),
        ],
        check=True,
    )
    partial = cache() / f'{_PACKAGE}.partial'
    shutil.rmtree(partial, ignore_errors=True)
    with tarfile.open(cache() / f'{_PACKAGE}.tar.gz') as archive:
      archive.extractall(partial, filter='data')
    (partial / _PACKAGE).rename(folder)
  return folder


def libraries(*, exact: bool) -> pathlib.Path:
  """Returns the folder of the built libraries: 5 minutes of CPU, once.

  Args:
    exact: Without the table of 65,536 numbers in 16 bits that llama.cpp has for
      GELU on CPUs. With it, as released, logits differ by up to 1e-2.
  """
  done = cache() / f'{_PACKAGE}-{"exact" if exact else "released"}'
  if done.exists():
    return done
  code = source() / 'vendor' / 'llama.cpp'
  header = code / 'ggml' / 'src' / 'ggml-cpu' / 'vec.h'
  text = header.read_text().replace(f'// {_TABLE}', _TABLE)
  assert _TABLE in text, header
  header.write_text(text.replace(_TABLE, f'// {_TABLE}') if exact else text)
  build = cache() / 'build'
  subprocess.run(
      [
          *('cmake', '-S', str(code), '-B', str(build), '-G', 'Ninja'),
          '-DCMAKE_BUILD_TYPE=Release',
          '-DCMAKE_BUILD_RPATH_USE_ORIGIN=ON',
          '-DLLAMA_CURL=OFF',
          '-DLLAMA_BUILD_TESTS=OFF',
      ],
      check=True,
      stdout=sys.stderr,
  )
  command = ['cmake', '--build', str(build), '--target', 'llama']
  subprocess.run(command, check=True, stdout=sys.stderr)
  partial = done.with_suffix('.partial')
  shutil.rmtree(partial, ignore_errors=True)
  shutil.copytree(build / 'bin', partial, symlinks=True)
  partial.rename(done)
  return done
