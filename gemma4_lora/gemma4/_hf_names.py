"""Where transformers keeps Gemma 4's language model and its towers.

Rows name modules below that: `layers.0.self_attn.q_proj`,
`vision_tower.encoder.layers.0.mlp.up_proj.linear`.
"""

from collections.abc import Iterable
from collections.abc import Iterator

_Prefixes = tuple[str, str | None]

# By class: the prefixes of the language model and of towers.
_BY_CLASS: dict[str, _Prefixes] = {
    'Gemma4ForConditionalGeneration': ('model.language_model.', 'model.'),
    'Gemma4ForCausalLM': ('model.', None),
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
_TOWERS = ('vision_tower.', 'audio_tower.', 'embed_vision.', 'embed_audio.')


def class_name(*, has_towers: bool) -> str:
  """Returns the class of transformers that has a model's parameters."""
  return CLASSES[0 if has_towers else 1]


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
  return module.removeprefix('model.').startswith(_TOWERS)
