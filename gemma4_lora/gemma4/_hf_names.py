"""Where transformers keeps Gemma 4's language model and its towers.

Rows name modules below that: `layers.0.self_attn.q_proj`,
`vision_tower.encoder.layers.0.mlp.up_proj.linear`.
"""

from collections.abc import Iterable
from collections.abc import Iterator

_Prefixes = tuple[str, str | None]

# 12B's, with its images. Its text alone is loaded by the class of the others, too:
# more servers know that.
_UNIFIED = 'Gemma4UnifiedForConditionalGeneration'
# By class: the prefixes of the language model and of towers.
_BY_CLASS: dict[str, _Prefixes] = {
    'Gemma4ForConditionalGeneration': ('model.language_model.', 'model.'),
    'Gemma4ForCausalLM': ('model.', None),
    _UNIFIED: ('model.language_model.', 'model.'),
    'Gemma4UnifiedForCausalLM': ('model.', None),
}
CLASSES = tuple(_BY_CLASS)
# Longest first. The last ones occur in older transformers and in hand-made
# files.
_TEXT_PREFIXES = (
    'model.language_model.',
    'language_model.model.',
    'language_model.',
    'model.',
    '',
)
_TOWER_PREFIXES = ('model.', '')
# 12B's module for images, which the Hub's files hold under two names: all but
# its projection, which stands in a module of its own in transformers.
_EMBEDDER = 'embed_vision.'
_HUB_EMBEDDER = 'vision_embedder.'
_INNER = 'multimodal_embedder.'
_PROJECTION = 'embedding_projection.'
_ENCODERS = {
    'vision_tower.': 'vision_encoder',
    _EMBEDDER: 'vision_encoder',
    _HUB_EMBEDDER: 'vision_encoder',
    'audio_tower.': 'audio_encoder',
    'embed_audio.': 'audio_encoder',
}


# Where each tower has its layers, by number, under `model`.
LAYER_LISTS = {
    'text': 'model.language_model.layers',
    'vision': 'model.vision_tower.encoder.layers',
    'audio': 'model.audio_tower.layers',
}


def class_name(*, has_towers: bool, unified: bool = False) -> str:
  """Returns the class of transformers that has a model's parameters."""
  if unified:
    return _UNIFIED
  return CLASSES[0 if has_towers else 1]


def is_unified_class(base_model_class: str) -> bool:
  """Whether a class is 12B's with images."""
  return base_model_class == _UNIFIED


def prefix(base_model_class: str, tower: str) -> str | None:
  """Returns the prefix of a tower's names, None without such a tower."""
  text, towers = _BY_CLASS[base_model_class]
  return text if tower == 'text' else towers


def towers_beside(text_prefix: str) -> str | None:
  """Returns the prefix of towers by that of the text, None without towers."""
  return _TOWER_PREFIXES[0] if is_multimodal([text_prefix]) else None


def is_multimodal(modules: Iterable[str]) -> bool:
  """Whether modules have the names of the class with towers."""
  return any('language_model.' in name for name in modules)


def prefixes(tower: str) -> tuple[str, ...]:
  """Returns the possible prefixes of a tower's names, longest first."""
  return _TEXT_PREFIXES if tower == 'text' else _TOWER_PREFIXES


def candidates(module: str) -> Iterator[tuple[str, str]]:
  """Yields how a module's name may split into prefix and name."""
  tower = 'others' if is_in_tower(module) else 'text'
  for start in prefixes(tower):
    if module.startswith(start):
      yield start, module.removeprefix(start)


def short(module: str) -> str:
  """Returns a module's name without the prefix of its tower."""
  _, name = next(candidates(module))
  return name


def is_in_tower(module: str) -> bool:
  """Whether a module is a part of a tower, not of the language model."""
  return encoder_of(module) is not None


def is_unified(names: Iterable[str]) -> bool:
  """Whether a file is of 12B with its images, under either kind of names."""
  starts = (_HUB_EMBEDDER, f'{_EMBEDDER}patch_dense.')
  return any(short(name).startswith(starts) for name in names)


def in_module(name: str) -> str:
  """Returns transformers' name of a tensor of 12B, by the one on the Hub.

  Args:
    name: A short name, of either kind.
  """
  if name.startswith(_HUB_EMBEDDER):
    return _EMBEDDER + name.removeprefix(_HUB_EMBEDDER)
  if name.startswith(_EMBEDDER + _PROJECTION):
    return f'{_EMBEDDER}{_INNER}{name.removeprefix(_EMBEDDER)}'
  return name


def on_hub(name: str) -> str:
  """Returns the short name in the Hub's files of a tensor in transformers."""
  if name.startswith(_EMBEDDER + _INNER):
    return _EMBEDDER + name.removeprefix(_EMBEDDER + _INNER)
  if name.startswith(_EMBEDDER) and not name.startswith(
      _EMBEDDER + _PROJECTION
  ):
    return _HUB_EMBEDDER + name.removeprefix(_EMBEDDER)
  return name


def encoder_of(module: str) -> str | None:
  """Returns the field of gemma's config that a module is of, None for text."""
  name = module.removeprefix('model.')
  return next((v for k, v in _ENCODERS.items() if name.startswith(k)), None)
