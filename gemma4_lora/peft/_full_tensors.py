"""Parts trained in full beside LoRA, `modules_to_save`, in PEFT's folder.

PEFT keeps whole modules, under their names in the model. If the embedding is
one of them, its output head must be tied to it by `ensure_weight_tying`, and is
in the file a second time.
"""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
from typing import Any

from etils import epath
import jax.numpy as jnp
import numpy as np

from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _weights
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _sites
from gemma4_lora.peft import _tensors
from gemma4_lora.targets import _full
from gemma4_lora.targets import _rule

HEAD = 'lm_head'

Row = _linears.Linear | _leaves.Leaf


@dataclasses.dataclass(frozen=True, kw_only=True)
class Modules:
  """Parts that are trained in full.

  Attributes:
    weights: Weights in transformers' form, by the module's name in the model.
    is_tied: Whether the output head is among them.
  """

  weights: Mapping[str, np.ndarray]
  is_tied: bool


def to_modules(
    copies: Sequence[tuple[_full.Saved, np.ndarray]],
    *,
    base_model_class: str,
    who: str,
) -> Modules:
  """Returns the modules of PEFT's folder.

  Args:
    copies: What is trained in full, and its values.
    base_model_class: Class of transformers.
    who: The function that asks, for messages.

  Raises:
    ValueError: A part has no name in transformers, or is not a whole module
      there, and PEFT keeps only whole modules.
  """
  weights = {}
  is_tied = False
  for part, value in copies:
    row = part.row
    prefix = _hf_names.prefix(base_model_class, row.tower)
    if prefix is None:
      raise ValueError(
          f'{who}: {base_model_class} has no {row.tower} tower, of which'
          f' modules_to_save has {row.name}.'
      )
    if not row.hf_name:
      raise ValueError(
          f'{who}: modules_to_save has {row.name}, whose name in transformers'
          ' is not known. Leave it out of modules_to_save=, or fuse it:'
          ' g4.nn.fuse_params.'
      )
    if not _is_module(row):
      raise ValueError(
          f'{who}: modules_to_save has {row.name}, and PEFT can keep whole'
          f' modules alone, which it is not in transformers. Leave it out of'
          ' modules_to_save=, or fuse it: g4.nn.fuse_params.'
      )
    for name, weight in zip(row.hf_names, _split(row, value), strict=True):
      weights[prefix + name] = weight
    if row.path == _names.EMBEDDING:
      weights[HEAD] = value
      is_tied = True
  return Modules(weights=weights, is_tied=is_tied)


def from_modules(
    weights: Mapping[str, np.ndarray],
    config: _adapter_config.PeftConfig,
    rows: Sequence[Row],
    *,
    path: epath.Path,
) -> list[tuple[_full.Saved, np.ndarray]]:
  """Returns what is trained in full, and its values.

  Args:
    weights: Weights by the module's name.
    config: The same folder's config.
    rows: All of the model, linears and others.
    path: The tensors' path, for messages.

  Raises:
    ValueError: File, config and model do not agree.
  """
  weights = dict(weights)
  head = weights.pop(HEAD, None)
  by_name = {
      name: row for row in rows if _is_module(row) for name in row.hf_names
  }
  found: dict[str, dict[str, np.ndarray]] = {}
  modules: dict[str, str] = {}
  for module, weight in weights.items():
    if not config.saves_module(module):
      raise ValueError(
          f'{path}: unexpected tensor {_sites.listed([module])}.weight: it is none'
          ' of LoRA, and'
          f' modules_to_save={list(config.modules_to_save)} of {config.path}'
          ' does not have it.'
      )
    names = (name for _, name in _hf_names.candidates(module))
    row = next((by_name[n] for n in names if n in by_name), None)
    if row is None:
      raise ValueError(
          f'{path} has {_sites.listed([module])}, trained in full, which the model'
          ' does not have.'
      )
    name = next(n for _, n in _hf_names.candidates(module) if n in by_name)
    if name in modules:
      raise ValueError(
          f'{path} has {row.name}, trained in full, twice:'
          f' {_tensors.full_key(modules[name])} and'
          f' {_tensors.full_key(module)}. The model has it once: remove one of'
          ' them.'
      )
    modules[name] = module
    found.setdefault(row.name, {})[name] = weight
  copies = []
  for row in rows:
    if row.name not in found:
      continue
    parts = found[row.name]
    lacking = [name for name in row.hf_names if name not in parts]
    if lacking:
      raise ValueError(
          f'{path} has {len(parts)} of the {len(row.hf_names)} modules of'
          f' {row.name}, which is one weight here. It lacks'
          f' {_sites.listed(lacking)}.'
      )
    saved = _full.Saved(row=row)
    pieces = [parts[name] for name in row.hf_names]
    copies.append((saved, _joined(saved, pieces, path)))
  _check_tied(copies, head, config, path)
  _check_there(weights, config, by_name, path)
  return copies


def rules(
    copies: Sequence[tuple[_full.Saved, np.ndarray]], rows: Sequence[Row]
) -> tuple[_rule.Rule, ...]:
  """Returns rules for exactly these parts, by projection if possible."""
  chosen = {part.row.name for part, _ in copies}
  selects = []
  for projection in dict.fromkeys(part.row.projection for part, _ in copies):
    alike = {
        row.name
        for row in rows
        if row.projection == projection and row.live and row.tower == 'text'
    }
    names = [p.row.name for p, _ in copies if p.row.projection == projection]
    is_all = alike == set(names) and alike <= chosen
    selects += [projection] if is_all else names
  return (_rule.Rule(tuple(selects)),) if selects else ()


def _is_module(row: Row) -> bool:
  """Whether transformers has a module with only that weight."""
  if isinstance(row, _linears.Linear):
    return not row.is_routed
  return row.is_hf_module


def _split(row: Row, value: np.ndarray) -> Iterator[np.ndarray]:
  """Yields the weights of the modules: one, or one per layer."""
  layers = value if row.stacked else [value]
  for weight in layers:
    if isinstance(row, _linears.Linear):
      matrix = _weights.to_matrix(jnp.asarray(weight), row.one_layer)
      yield np.ascontiguousarray(np.asarray(matrix).T)
    else:
      # transformers flattens the per-layer table.
      yield np.asarray(weight).reshape(*weight.shape[:1], *_flat(weight))


def _flat(weight: np.ndarray) -> tuple[int, ...]:
  return () if weight.ndim == 1 else (-1,)


def _joined(
    saved: _full.Saved, pieces: Sequence[np.ndarray], path: epath.Path
) -> np.ndarray:
  """Undoes `_split`."""
  row = saved.row
  shape = saved.shape[1:] if row.stacked else saved.shape
  like = np.empty(shape, np.float32)
  wanted = [piece.shape for piece in _split(_one(row), like)]
  joined = []
  for piece in pieces:
    if piece.shape != wanted[0]:
      raise ValueError(
          f'{path}: {row.name}, trained in full: file {piece.shape}, model'
          f' {wanted[0]}. Is it of another Gemma 4, or of another size?'
      )
    if isinstance(row, _linears.Linear):
      joined.append(
          np.asarray(
              _weights.from_matrix(jnp.asarray(piece.T), row.one_layer, like)
          )
      )
    else:
      joined.append(piece.reshape(shape))
  return np.stack(joined) if row.stacked else joined[0]


def _one(row: Row) -> Any:
  if isinstance(row, _linears.Linear):
    return row.one_layer
  return dataclasses.replace(row, stacked=False)


def _check_tied(
    copies: Sequence[tuple[_full.Saved, np.ndarray]],
    head: np.ndarray | None,
    config: _adapter_config.PeftConfig,
    path: epath.Path,
) -> None:
  """Raises if the head is not the embedding, which are one table here."""
  table = next((v for p, v in copies if p.row.path == _names.EMBEDDING), None)
  if table is not None and not config.ensure_weight_tying:
    raise ValueError(
        f'{path} has the embedding, trained in full, and {config.path}'
        ' ensure_weight_tying=False: the output head keeps the base there. Here'
        ' both are one table. Train it with ensure_weight_tying=True.'
    )
  if head is not None and (table is None or not np.array_equal(head, table)):
    raise ValueError(
        f'{path} has {HEAD}.weight, which is not the embedding: here both are'
        ' one table.'
    )


def _check_there(
    weights: Mapping[str, Any],
    config: _adapter_config.PeftConfig,
    by_name: Mapping[str, Row],
    path: epath.Path,
) -> None:
  """Raises if the config names modules that the file lacks."""
  there = {}
  for module in weights:
    for prefix, name in _hf_names.candidates(module):
      if name in by_name:
        there.setdefault(name, prefix)
  of_text = [p for n, p in there.items() if by_name[n].tower == 'text']
  text = of_text[0] if of_text else _hf_names.prefixes('text')[0]
  for target in config.modules_to_save:
    if target != HEAD and not any(x.endswith(target) for x in _outer(weights)):
      raise ValueError(
          f'{path} has nothing of modules_to_save={target!r} of {config.path}.'
      )
  lacking = [
      text + name
      for name, row in by_name.items()
      if row.tower == 'text'
      and row.live
      and name not in there
      and config.saves_module(text + name)
  ]
  if lacking:
    raise ValueError(
        f'{path} lacks {len(lacking)} modules of'
        f' modules_to_save={list(config.modules_to_save)} of {config.path}:'
        f' {_sites.listed(lacking)}.'
    )


def _outer(modules: Iterable[str]) -> Iterator[str]:
  """Yields modules and all modules that contain them."""
  for module in modules:
    segments = module.split('.')
    for i in range(1, len(segments) + 1):
      yield '.'.join(segments[:i])
