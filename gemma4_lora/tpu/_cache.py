"""Keeps plans, as a compile takes minutes."""

from collections.abc import Mapping
import functools
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import re
import secrets
from typing import Any

from absl import logging
from etils import epath
import jax

from gemma4_lora import host
from gemma4_lora.host import _storage_errors
from gemma4_lora.tpu import _plan

_PACKAGES = (
    'flax',
    'gemma',
    'jax',
    'jaxlib',
    'kauldron',
    'libtpu',
    'ml_dtypes',
    'optax',
)
_VARIABLES = ('LIBTPU_INIT_ARGS', 'XLA_FLAGS')
_JAX_OPTIONS = (
    'jax_default_matmul_precision',
    'jax_default_prng_impl',
    'jax_enable_x64',
    'jax_numpy_dtype_promotion',
)


def folder(cache: epath.PathLike | bool | None) -> epath.Path | None:
  """Returns the folder of plans.

  Args:
    cache: A folder; True for the user's own; False or None for nowhere.
  """
  if cache is None or cache is False:
    return None
  if cache is not True:
    return host.path(cache, who='plan: cache').expanduser()
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return epath.Path(home).expanduser() / 'gemma4_lora' / 'plans'


def key_of(config: str, **settings: Any) -> str | None:
  """Returns a name for everything that a plan depends on; None if it has none.

  Args:
    config: The resolved config, as JSON.
    **settings: Other arguments of the plan.
  """
  modules = _modules(config)
  if modules is None:
    return None
  values = json.loads(config)
  values.pop('workdir', None)
  everything = {
      'config': values,
      'settings': settings,
      'modules': modules,
      'versions': {name: _version(name) for name in _PACKAGES},
      'package': _package_hash(),
      'environment': {name: os.environ.get(name) for name in _VARIABLES},
      'jax': {name: str(getattr(jax.config, name)) for name in _JAX_OPTIONS},
  }
  text = json.dumps(everything, sort_keys=True, default=str)
  return hashlib.sha256(text.encode()).hexdigest()


def load(where: epath.Path, key: str) -> _plan.Plan | None:
  """Returns a plan that was kept, or None."""
  path = where / f'{key}.json'
  try:
    with _storage_errors.explained(path, who='plan'):
      values = json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except (OSError, ValueError) as e:
    logging.warning('%s cannot be read (%s): the step compiles anew.', path, e)
    return None
  return _plan.Plan.from_json(values | {'cached': True})


def save(where: epath.Path, key: str, plan: _plan.Plan) -> None:
  """Keeps a plan; a folder that cannot be written is a line in the log."""
  path = where / f'{key}.json'
  text = json.dumps(plan.to_json(), indent=1)
  # Another process may write it too: the file appears complete, as in a bucket.
  new = path.with_name(f'{path.name}.{secrets.token_hex(4)}.tmp')
  try:
    if host.is_local(path):
      where.mkdir(parents=True, exist_ok=True)
      new.write_text(text)
      new.replace(path)
    else:
      with _storage_errors.explained(path, who='plan', doing='write'):
        path.write_text(text)
  except OSError as e:
    logging.warning('The plan is not kept for another time: %s', e)


def _modules(config: str) -> Mapping[str, str] | None:
  """Returns hashes of the files of a config's classes and functions.

  None if one has no file: a class of a notebook may have changed.
  """
  hashes = {}
  names = re.findall(r'"__(?:qualname|const)__": "([\w.]+)', config)
  for name in sorted(set(names)):
    try:
      spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
      spec = None
    if name == '__main__':
      return None
    if spec is not None and spec.origin and os.path.isfile(spec.origin):
      content = pathlib.Path(spec.origin).read_bytes()
      hashes[name] = hashlib.sha256(content).hexdigest()
  return hashes


@functools.cache
def _package_hash() -> str:
  """Returns a hash of our source; commits do not change the version."""
  root = pathlib.Path(__file__).parent.parent
  total = hashlib.sha256()
  for path in sorted(root.rglob('*.py')):
    total.update(str(path.relative_to(root)).encode())
    total.update(path.read_bytes())
  return total.hexdigest()


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None
