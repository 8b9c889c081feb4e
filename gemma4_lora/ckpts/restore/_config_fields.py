"""Finds the fields of a model's config that explain another shape of a leaf.

For error messages: a mismatch of shapes is one of a handful of fields.
"""

from collections.abc import Iterable

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _released
from gemma4_lora.gemma4 import _rows


def differing(
    path: _trees.Path, model: tuple[int, ...], checkpoint: tuple[int, ...]
) -> Iterable[str]:
  """Yields the config fields by which two shapes of one leaf differ.

  Args:
    path: Path of the leaf below `params`.
    model: The leaf's shape in the model.
    checkpoint: The leaf's shape in the checkpoint.

  Yields:
    For example `'embed_dim (model 32, checkpoint 40)'`.
  """
  if encoder := _names.encoder_of(path):
    yield f'the {encoder} of the config'
  elif len(model) != len(checkpoint):
    if 'mlp' in path:
      yield 'enable_moe'
  else:
    axes = _axes(path, len(model))
    for axis, m, c in zip(axes, model, checkpoint, strict=True):
      if m != c and axis:
        yield f'{_spell(axis)} (model {m}, checkpoint {c})'


def _axes(path: _trees.Path, num_axes: int) -> _rows.Axes:
  row = _released.row_at(_names.canonical(path), num_axes)
  return (None,) * num_axes if row is None else row.axes


def _spell(axis: str) -> str:
  # `attention_types` has one entry for each layer.
  return 'number of layers' if axis == 'attention_types' else axis
