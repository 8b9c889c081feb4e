"""Paths into trees: flatten, select, replace."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
from typing import Any

import jax
from kauldron import kontext

Path = tuple[str, ...]

LORA_KEY = 'lora'


def key_path(keys: tuple[Any, ...]) -> Path:
  """Returns JAX's path of a leaf as strings: `('params', 'layer_0', 'w')`.

  Orbax stores tuples as lists and dataclasses as dicts, so a path of strings
  is what the state and the file have in common.

  Args:
    keys: A path from `jax.tree_util.tree_flatten_with_path`.
  """
  return tuple(jax.tree_util.keystr((k,), simple=True) for k in keys)


def flatten(
    tree: Any, *, is_leaf: Callable[[Any], bool] | None = None
) -> dict[Path, Any]:
  """Returns `{path: leaf}`, in the order of `jax.tree.leaves`.

  Args:
    tree: Any tree.
    is_leaf: Nodes to keep whole, as `quant.is_quantized`.
  """
  flat, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return {key_path(keys): leaf for keys, leaf in flat}


def segments(dotted: str) -> Path:
  """Returns `'opt_state[0].mu'` as `('opt_state', '0', 'mu')`."""
  return tuple(str(p) for p in kontext.Path.from_str(dotted).parts)


def join(path: Path) -> str:
  return '.'.join(path)


def is_lora(path: Path) -> bool:
  """Whether the leaf belongs to a LoRA branch rather than to the base model."""
  return LORA_KEY in path


def get_at(tree: Any, path: Path) -> Any:
  """Returns the sub-tree of `tree` at `path`.

  Args:
    tree: Dicts, sequences and objects with attributes.
    path: Keys, indices and attribute names.

  Raises:
    KeyError: There is nothing at `path`.
  """
  for i, key in enumerate(path):
    try:
      if isinstance(tree, Mapping):
        tree = tree[key]
      elif isinstance(tree, (list, tuple)) and key.isdigit():
        tree = tree[int(key)]
      else:
        tree = getattr(tree, key)
    except (KeyError, IndexError, AttributeError) as e:
      raise KeyError(join(path[: i + 1])) from e
  return tree


def replace_at(tree: Any, path: Path, value: Any) -> Any:
  """Returns a shallow copy of `tree` that holds `value` at `path`."""
  if not path:
    return value
  key, *rest = path
  new = replace_at(get_at(tree, (key,)), tuple(rest), value)
  if isinstance(tree, Mapping):
    make: Any = type(tree)  # `dict` or `FrozenDict`.
    return make({**tree, key: new})
  if isinstance(tree, (list, tuple)) and key.isdigit():
    items = [*tree[: int(key)], new, *tree[int(key) + 1 :]]
    return type(tree)(*items) if hasattr(tree, '_fields') else type(tree)(items)
  if hasattr(tree, '_replace'):  # A named tuple, by field name.
    return tree._replace(**{key: new})
  return dataclasses.replace(tree, **{key: new})


def split_lora(tree: Any) -> tuple[Any, Any]:
  """Splits nested params in the base model's and the LoRA leaves.

  Args:
    tree: For example `{'w': w, '_LoRAEinsum_0': {'lora': {'a': a, 'b': b}}}`.

  Returns:
    For example `{'w': w}` and `{'_LoRAEinsum_0': {'lora': {'a': a, 'b': b}}}`.
    Dicts that held nothing but LoRA leaves are not in the first.
  """
  base, lora = {}, {}
  for key, value in tree.items():
    if key == LORA_KEY:
      lora[key] = value
    elif isinstance(value, Mapping) and value:
      sub_base, sub_lora = split_lora(value)
      if sub_base:
        base[key] = sub_base
      if sub_lora:
        lora[key] = sub_lora
    else:
      base[key] = value
  return base, lora


def merge(base: Any, lora: Any) -> Any:
  """Undoes `split_lora`."""
  if not isinstance(base, Mapping) or not isinstance(lora, Mapping):
    return lora
  keys = [*base, *(k for k in lora if k not in base)]
  return {
      k: merge(base[k], lora[k])
      if k in base and k in lora
      else base[k]
      if k in base
      else lora[k]
      for k in keys
  }


# ------------------ Nested dicts, by dotted path ------------------


def dotted(params: Any) -> dict[str, Any]:
  """Returns leaves by their dotted paths."""
  return {join(path): leaf for path, leaf in flatten(params).items()}


def get(params: Mapping[str, Any], path: str) -> Any:
  """Returns a leaf or sub-tree.

  Args:
    params: Nested.
    path: Dotted.

  Raises:
    ValueError: There is nothing at `path`.
  """
  node = params
  for key in path.split('.'):
    if key not in node:
      raise ValueError(f'params has no {path}: there is no {key!r}.')
    node = node[key]
  return node


def find(params: Mapping[str, Any], path: str) -> Any:
  """Returns a leaf or sub-tree by its dotted path, None where there is none."""
  node: Any = params
  for key in path.split('.'):
    if not isinstance(node, Mapping) or key not in node:
      return None
    node = node[key]
  return node


def put(params: dict[str, Any], path: str, value: Any) -> None:
  """Sets a leaf by its dotted path, in place."""
  *scopes, name = path.split('.')
  node = params
  for key in scopes:
    node = node[key]
  node[name] = value


def put_like(params: dict[str, Any], path: str, value: jax.Array) -> None:
  """Sets a leaf, in place, with the shape, dtype and sharding of the old one."""
  old = get(params, path)
  value = value.reshape(old.shape).astype(old.dtype)
  put(params, path, jax.device_put(value, old.sharding))
