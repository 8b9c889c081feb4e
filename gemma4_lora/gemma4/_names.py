"""Names of Gemma 4's parameters in gemma's checkpoints.

A leaf of one model may be spelt in several ways; `canonical` returns one
spelling for all. Hugging Face's names are in `_hf_names`.
"""

from collections.abc import Iterable
import re

from gemma4_lora import _trees

EMBEDDING = 'embedder.input_embedding'
PER_LAYER_EMBEDDINGS = 'embedder.per_layer_embeddings'
# Tables: most of a small model. Their rows are looked up.
TABLES = (EMBEDDING, PER_LAYER_EMBEDDINGS)

POSITIONS = 'vision_encoder.entry.pos_emb'
# The scope whose leaves have the layers along their first axis.
VISION_BLOCK = 'vision_encoder.transformer.stacked_layers.block'
# Leaves of a linear's scope, after `clip_`.
CLIP_BOUNDS = ('input_min', 'input_max', 'output_min', 'output_max')

# The linears of MLPs are bare arrays in `model.init`, which makes them in their
# parent's scope, and `{'w': array}` in released files.
_BARE = ('gating_einsum', 'linear')
_MLPS = ('mlp', 'mlp2')
_LAYER = re.compile(r'layer_(\d{1,9})')
# Towers, and their projections in the embedder.
_ENCODERS = ('vision_encoder', 'audio_encoder')
_EMBEDDER_PREFIXES = {'mm_': 'vision_encoder', 'audio_': 'audio_encoder'}


def canonical(path: _trees.Path) -> _trees.Path:
  """Returns one spelling of a leaf for all its spellings.

  * MLP linears are `{'w': array}` in released files and bare arrays in
    `model.init`.
  * A module of the audio tower has a slash in its name, on which the flat
    layout splits.

  Args:
    path: For example `('layer_0', 'mlp', 'linear', 'w')`.

  Returns:
    For example `('layer_0', 'mlp', 'linear')`.
  """
  path = tuple(p for part in path for p in part.split('/'))
  if path[-1:] == ('w',) and _is_bare(path[:-1]):
    path = path[:-1]
  return path


def released(path: _trees.Path) -> _trees.Path:
  """Returns the path in released files of a leaf of `model.init`."""
  return (*path, 'w') if _is_bare(path) else path


def _is_bare(path: _trees.Path) -> bool:
  return len(path) >= 2 and path[-2] in _MLPS and path[-1] in _BARE


def is_table(path: _trees.Path) -> bool:
  """Whether rows of the leaf are looked up: see `TABLES`."""
  return _trees.join(path[-2:]) in TABLES


def layer_of(path: _trees.Path) -> int | None:
  """Index of the text tower's layer that the leaf is in, if it is in one."""
  match = _LAYER.fullmatch(path[0]) if path else None
  return int(match[1]) if match else None


def num_layers(paths: Iterable[_trees.Path]) -> int:
  """Number of layers of the text tower that have any of the leaves."""
  return len({layer_of(p) for p in paths} - {None})


def tower_of(path: _trees.Path) -> str | None:
  """Name of the tower that a leaf belongs to, or `None` for the text model.

  `model.init` creates the projections into the text tower only when it is
  given an image or a clip, so they count as parts of their own.

  Args:
    path: Path of a leaf below `params`.
  """
  if path[:1] and path[0] in _ENCODERS:
    return path[0]
  prefix = _embedder_prefix(path)
  return f'embedder.{prefix}*' if prefix else None


def encoder_of(path: _trees.Path) -> str | None:
  """Field of the config that requires a leaf of `tower_of`, or `None`."""
  if path[:1] and path[0] in _ENCODERS:
    return path[0]
  return _EMBEDDER_PREFIXES.get(_embedder_prefix(path) or '')


def _embedder_prefix(path: _trees.Path) -> str | None:
  if path[:1] != ('embedder',) or len(path) < 2:
    return None
  return next((p for p in _EMBEDDER_PREFIXES if path[1].startswith(p)), None)


def fill_value(path: _trees.Path) -> float:
  """Value of a leaf without another source: 1 for scales, 0 for weights."""
  return 1.0 if path[-1].endswith('scale') else 0.0


def older_gemma(
    model: Iterable[_trees.Path], stored: Iterable[_trees.Path]
) -> str | None:
  """Recognises a checkpoint of an earlier Gemma.

  Every layer of Gemma 4, and no layer before it, has a `skip_scale`.

  Args:
    model: Paths of the model's leaves below `params`.
    stored: Paths of the checkpoint's leaves below `params`.

  Returns:
    The name of the checkpoint's family, or `None`.
  """

  def is_skip(p):
    return layer_of(p) is not None and p[1:] == ('skip_scale',)

  stored = list(stored)
  if not any(map(is_skip, model)) or not num_layers(stored):
    return None
  if any(map(is_skip, stored)):
    return None
  if any(p[1:3] == ('attn', '_key_norm') for p in stored):
    return 'Gemma 3'
  return 'a Gemma before Gemma 4'
