"""The fingerprint of a LoRA: its base and its settings."""

from collections.abc import Mapping
import dataclasses
from importlib import metadata
from typing import Any

from etils import epath
from flax import linen as nn
import jax

from gemma4_lora import _trees
from gemma4_lora import nn as g4_nn
from gemma4_lora import variants
from gemma4_lora.ckpts.lora import _bundles
from gemma4_lora.ckpts.lora import _fingerprint_differences
from gemma4_lora.ckpts.lora import _fingerprint_fields
from gemma4_lora.host import _checksums
from gemma4_lora.host import _intact
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.nn.branches import _init

# The item of a checkpoint, and its file: that of Orbax's JSON handler.
ITEM = 'fingerprint'
_FILE = 'metadata'
# The arrays beside it, and what Orbax says of them.
_ARRAYS = 'default'
_METADATA = f'{_ARRAYS}/_METADATA'

_FORMAT = 1
_PACKAGES = ('gemma4_lora', 'gemma', 'kauldron', 'jax', 'flax', 'optax')

Fingerprint = Mapping[str, Any]


def describe(
    model: nn.Module, params: Any, *, content: bool = True
) -> dict[str, Any]:
  """Returns what identifies a base model and its LoRA, as JSON.

  Args:
    model: The model that is trained: a `g4.nn.LoRA`, or a model around one.
    params: Its parameters, nested. The base on which LoRA is trained; with
      PiSSA and OLoRA, the changed base.
    content: Whether to read a sample of the base. Without it, `params` may be
      shapes.

  Returns:
    For example:

    ```python
    {
        'format': 1,
        'base': {
            'leaves': {'final_norm.scale': ['bfloat16', [32]], ...},
            'checksums': {'final_norm.scale': '6b2f09c1', ...},
        },
        'lora': {
            'leaves': {'layer_0.mlp.lora.down.a': ['float32', [48, 4]], ...},
            'projections': {
                'layer_0.mlp.lora.down': {
                    'rank': 4, 'alpha': 8.0, 'dropout': 0.0,
                },
                ...
            },
            'settings': {'use_rslora': False, ...},
        },
        'versions': {'gemma4_lora': '0.1.0', ...},
    }
    ```
  """
  lora, base = {}, {}
  for path, leaf in _trees.flatten(params).items():
    leaves = lora if _trees.is_lora(path) else base
    leaves[_trees.join(path)] = leaf
  described: dict[str, Any] = {'leaves': _fingerprint_differences.specs(base)}
  if content:
    described['checksums'] = _checksums.checksums(base)
  return {
      'format': _FORMAT,
      'base': described,
      'lora': {
          'leaves': _fingerprint_differences.specs(lora),
          **_settings(model),
      },
      'versions': {name: _version(name) for name in _PACKAGES},
  }


def check(
    saved: Fingerprint, current: Fingerprint, *, who: str, where: str
) -> None:
  """Checks that LoRA fits the base and the model of the config.

  Other rates of dropout, and other versions of packages, are lines in the log.

  Args:
    saved: What was trained, from `read`.
    current: What `describe` returned; without content, that is not compared.
    who: What asks, for messages.
    where: Where `saved` is, for messages.

  Raises:
    ValueError: They do not fit; the message has both sides of each difference.
  """
  check_format(saved, who=who, where=where)
  problems = [
      *_fingerprint_differences.different_lora(saved['lora'], current['lora']),
      *(
          []
          if _other_quantize(saved, current)  # Has been said.
          else _fingerprint_differences.different_base(
              saved['base'], current['base']
          )
      ),
      *_fingerprint_differences.different_values(saved, current),
  ]
  if problems:
    raise ValueError(
        f'{who}: what {where} holds was trained on another base, or with other'
        ' LoRA settings, than the config has:\n'
        + '\n'.join(f'  {problem}' for problem in problems)
        + '\nTo go on with it, set these back; to start anew, give the run a'
        ' workdir of its own: --cfg.workdir=….'
    )
  _fingerprint_differences.log_harmless(saved, current, who=who)


def check_format(saved: Fingerprint, *, who: str, where: str) -> None:
  """Checks that this version can read what was saved; see `check`.

  Raises:
    ValueError: Only another version can.
  """
  if saved.get('format') != _FORMAT:
    raise ValueError(
        f'{who}: the fingerprint in {where} has format {saved.get("format")},'
        f' and this gemma4_lora reads format {_FORMAT}: install the version that'
        f' wrote it: {saved.get("versions")}.'
    )


def _other_quantize(saved: Fingerprint, current: Fingerprint) -> bool:
  settings = [
      x['lora']['settings'].get(_fingerprint_differences.QUANTIZE)
      for x in (saved, current)
  ]
  return settings[0] != settings[1]


def base_differences(saved: Fingerprint, params: Any) -> list[str]:
  """Returns how a base differs from the one that LoRA was trained on.

  Leaves present on only one side are not compared: a model without towers has
  the same base.

  Args:
    saved: What was trained, from `read`.
    params: Nested; LoRA leaves among them do not matter. If a leaf has no
      values, only its shape is compared.
  """
  ours = {
      _trees.join(path): leaf
      for path, leaf in _trees.flatten(params).items()
      if not _trees.is_lora(path)
  }
  if problems := list(_fingerprint_differences.different_formats(saved, ours)):
    return problems
  base = {k: x for k, x in ours.items() if k in saved['base']['leaves']}
  old = {k: saved['base']['leaves'][k] for k in base}
  sums = {
      k: x for k, x in base.items() if not isinstance(x, jax.ShapeDtypeStruct)
  }
  current = {'base': {'checksums': _checksums.checksums(sums)}}
  return [
      *_fingerprint_differences.different_leaves(
          'the base (model=)', old, _fingerprint_differences.specs(base)
      ),
      *_fingerprint_differences.different_values(saved, current),
  ]


def read(step_dir: epath.Path) -> Fingerprint | None:
  """Returns the fingerprint in one `ckpt_N` folder, `None` if it never had one.

  Args:
    step_dir: The folder.

  Raises:
    ValueError: It is damaged, or gone: the arrays are those of LoRA alone.
  """
  file = step_dir / ITEM / _FILE
  with _storage_errors.explained(file, who='LoRA'):
    if not file.exists():
      _check_has_none(step_dir, file)
      return None
    values = parse(_regular.read(file), file=file)
  if values.get('format') == _FORMAT and 'index' not in values:
    raise ValueError(
        f'{file} is damaged: it has no index of what lies in the arrays. Copy it'
        ' again.'
    )
  return values


def read_beside(item: epath.Path) -> Fingerprint | None:
  """Returns the fingerprint beside the arrays of a step, None if there is none.

  Args:
    item: Folder of the arrays. Only the item of a step may have one.
  """
  return read(item.parent) if item.name == _ARRAYS else None


def _check_has_none(step_dir: epath.Path, file: epath.Path) -> None:
  """Raises if a step's arrays say that there was a fingerprint."""
  metadata = step_dir / _METADATA
  if not metadata.exists():
    return
  tree = _json_objects.read(metadata).get('tree_metadata')
  # Orbax spells the path `('step_int32',)`.
  paths = tree if isinstance(tree, dict) else ()
  if _bundles.are_bundles(x.strip("(',)") for x in paths):
    raise ValueError(
        f'{step_dir} is a part of a checkpoint: {file} is not there, which'
        ' LoRACheckpointer writes, and which says what lies in the arrays. Copy'
        ' that step again; or remove its folder, to go on from the step before.'
    )


def to_write(values: Fingerprint) -> dict[str, Any]:
  """Returns the text of the file, with a seal by which `parse` sees damage."""
  return _intact.sealed(values)


def parse(text: str | bytes, *, file: epath.Path) -> Fingerprint:
  """Returns the fingerprint that a file has.

  Args:
    text: The file's text.
    file: The file, for messages.

  Raises:
    ValueError: It is damaged.
  """
  try:
    values = _json_objects.parse(text, path=file)
    _intact.check_seal(values)
    if values.get('format') == _FORMAT or type(values.get('format')) is not int:
      _fingerprint_fields.check(values)
  except ValueError as e:
    raise ValueError(
        f'{file} is damaged: {str(e).rstrip(".")}. Copy it again; or, of a run, remove the folder'
        ' of that step, to go on from the step before.'
    ) from e
  return values


def find_lora(model: Any) -> g4_nn.LoRA | None:
  """Returns the `g4.nn.LoRA` that a model is, or that one of its fields is."""
  if isinstance(model, g4_nn.LoRA):
    return model
  if not isinstance(model, nn.Module):
    return None
  fields = (getattr(model, f.name, None) for f in dataclasses.fields(model))
  found = (find_lora(x) for x in fields if isinstance(x, nn.Module))
  return next((x for x in found if x is not None), None)


def _settings(model: nn.Module) -> dict[str, Any]:
  """Returns settings of LoRA that shapes do not show."""
  lora = find_lora(model)
  if lora is None:  # gemma's own LoRA: only its leaves are known.
    return {'projections': {}, 'settings': {}}
  return {
      'projections': {
          linear.row.lora_path: {
              'rank': int(linear.rank),
              'alpha': float(linear.alpha),
              'dropout': float(linear.dropout),
          }
          for linear in lora.adapted
      },
      'settings': {
          'use_rslora': bool(lora.use_rslora),
          **variants.arguments(lora.variant),
          'init_lora_weights': lora.init_lora_weights,
      }
      # Earlier versions write it so if nothing is quantised.
      | (
          {_fingerprint_differences.QUANTIZE: [repr(x) for x in lora.quantize]}
          if lora.quantize
          else {}
      ),
  }


def _version(package: str) -> str:
  try:
    return metadata.version(package)
  except metadata.PackageNotFoundError:
    return _fingerprint_differences.NONE


def is_from_base(model: nn.Module) -> bool:
  """Whether A and B have no values until they are taken from the base."""
  lora = find_lora(model)
  return lora is not None and _init.is_from_base(lora.init_lora_weights)
