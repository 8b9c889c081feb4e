"""Reads `adapter_config.json`, and what it says of each module."""

from collections.abc import Mapping
import dataclasses
import json
import re
from typing import Any

from etils import epath

from gemma4_lora import variants

NAME = 'adapter_config.json'

# Settings under which PEFT computes what no variant here does.
# The value is what is as good as not set, besides None, False and empty.
_UNSUPPORTED = {
    'bias': 'none',
    'fan_in_fan_out': None,
    'layer_replication': None,
    'lora_bias': None,
    'trainable_token_indices': None,
    'alora_invocation_tokens': None,
    'arrow_config': None,
    'kasa_config': None,
    'monteclora_config': None,
    'use_bdlora': None,
    'use_qalora': None,
    'velora_config': None,
}
# As PEFT names them -> as `g4.nn.LoRA(init_lora_weights=)` does.
_INITS = {
    True: 'default',
    False: 'default',
    None: 'default',
    'gaussian': 'gaussian',
    'orthogonal': 'orthogonal',
    'olora': 'olora',
    'eva': 'default',  # Leaves the base alone.
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PeftConfig:
  """A `LoraConfig` of PEFT, of the fields of the same names.

  Attributes:
    path: The file's path.
    variant: The variant that its fields choose.
    init_lora_weights: See `g4.nn.LoRA`.
  """

  path: epath.Path
  r: int
  lora_alpha: float
  rank_pattern: Mapping[str, int]
  alpha_pattern: Mapping[str, float]
  use_rslora: bool
  variant: variants.Variant
  lora_dropout: float
  init_lora_weights: str
  target_modules: Any
  exclude_modules: Any
  layers_to_transform: Any
  layers_pattern: Any
  target_parameters: tuple[str, ...]
  modules_to_save: tuple[str, ...]
  ensure_weight_tying: bool

  def rank(self, name: str) -> int:
    """Rank of a module, by its name in the model."""
    return _by_pattern(self.rank_pattern, name, default=self.r)

  def alpha(self, name: str) -> float:
    """Numerator of a module's scale."""
    return _by_pattern(self.alpha_pattern, name, default=self.lora_alpha)

  def targets_parameter(self, name: str) -> bool:
    """Whether PEFT would adapt a parameter, by its name in the model."""
    return any(f'.{name}'.endswith(f'.{t}') for t in self.target_parameters)

  def saves_module(self, name: str) -> bool:
    """Whether PEFT would train a module in full, by its name in the model."""
    return _names(self.modules_to_save, name)

  def targets_module(self, name: str) -> bool:
    """Whether PEFT would adapt a linear, by its name in the model."""
    if self.saves_module(name):
      return False
    if self.exclude_modules and _names(self.exclude_modules, name):
      return False
    if isinstance(self.target_modules, str):
      return self.target_modules == 'all-linear' or _names(
          self.target_modules, name
      )
    return _names(self.target_modules, name) and self._in_layers(name)

  def _in_layers(self, name: str) -> bool:
    """Whether `layers_to_transform` lets a module be adapted."""
    layers = self.layers_to_transform
    if layers is None or layers == []:
      return True
    patterns = self.layers_pattern or [r'[^.]*']
    if isinstance(patterns, str):
      patterns = [patterns]
    for pattern in patterns:
      found = re.match(rf'(?:.*?\.)?{pattern}\.(\d+)\.', name)
      if found is not None:
        wanted = [layers] if isinstance(layers, int) else layers
        return int(found.group(1)) in wanted
    return False

  @property
  def targets(self) -> str:
    """What it says of modules, for messages."""
    said = [f'target_modules={_short(self.target_modules)}']
    for name in ('exclude_modules', 'layers_to_transform'):
      value = getattr(self, name)
      if value not in (None, [], ''):
        said.append(f'{name}={_short(value)}')
    return ', '.join(said)


def read(path: epath.Path, data: bytes) -> PeftConfig:
  """Reads the config of a PEFT folder.

  Args:
    path: The file's path.
    data: What the file holds.

  Raises:
    ValueError: It is not JSON, is not for LoRA, or has a setting that
      `g4.nn.LoRA` cannot follow.
  """
  try:
    fields = json.loads(data)
  except (json.JSONDecodeError, UnicodeDecodeError) as e:
    raise ValueError(f'{path} is no JSON: {e}') from e
  if not isinstance(fields, dict):
    raise ValueError(f'{path} is no object of JSON. Got: {_short(fields)}')
  kind = fields.get('peft_type')
  if kind != 'LORA':
    raise ValueError(
        f"{path}: peft_type={kind!r}, and g4.nn.LoRA is 'LORA' only."
    )
  for name, off in _UNSUPPORTED.items():
    value = fields.get(name)
    if value not in (None, False, [], {}, '', off):
      raise ValueError(
          f'{path}: {name}={_short(value)}, which g4.nn.LoRA does not have'
          f' (it has {name}={off!r}).'
      )
  _check(path, fields)
  return PeftConfig(
      path=path,
      r=fields['r'],
      lora_alpha=fields['lora_alpha'],
      rank_pattern=fields.get('rank_pattern') or {},
      alpha_pattern=fields.get('alpha_pattern') or {},
      use_rslora=bool(fields.get('use_rslora')),
      variant=variants.chosen(fields),
      lora_dropout=fields.get('lora_dropout') or 0.0,
      init_lora_weights=_init(path, fields.get('init_lora_weights', True)),
      target_modules=fields.get('target_modules'),
      exclude_modules=fields.get('exclude_modules'),
      layers_to_transform=fields.get('layers_to_transform'),
      layers_pattern=fields.get('layers_pattern'),
      target_parameters=tuple(fields.get('target_parameters') or ()),
      modules_to_save=tuple(fields.get('modules_to_save') or ()),
      ensure_weight_tying=bool(fields.get('ensure_weight_tying')),
  )


def _check(path: epath.Path, fields: Mapping[str, Any]) -> None:
  """Raises where a field is not what it should be."""

  def check(name, value, fits, takes):
    if not fits:
      raise ValueError(f'{path}: {name} takes {takes}. Got: {value!r}')

  for name, value in (
      ('r', fields.get('r')),
      *(fields.get('rank_pattern') or {}).items(),
  ):
    fits = isinstance(value, int) and not isinstance(value, bool) and value > 0
    check(name, value, fits, 'a positive integer as rank')
  for name, value in (
      ('lora_alpha', fields.get('lora_alpha')),
      *(fields.get('alpha_pattern') or {}).items(),
  ):
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    check(name, value, fits, 'a number as alpha')
  patterns = [
      *(fields.get('rank_pattern') or {}),
      *(fields.get('alpha_pattern') or {}),
  ]
  for name in ('target_modules', 'exclude_modules'):
    value = fields.get(name)
    fits = value is None or isinstance(value, (str, list))
    check(name, value, fits, 'a string or a list')
    if isinstance(value, str):
      patterns.append(value)
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as e:
      raise ValueError(
          f'{path}: {pattern!r} is no regular expression: {e}'
      ) from e


def _init(path: epath.Path, value: Any) -> str:
  """Returns how A and B started, by our names."""
  if isinstance(value, str) and value.startswith('pissa'):
    return value
  known = value is None or isinstance(value, (bool, str))
  if not known or value not in _INITS:
    raise ValueError(
        f'{path}: init_lora_weights={value!r} changes the base in a way that'
        ' g4.nn.LoRA does not know: it knows pissa and olora.'
    )
  return _INITS[value]


def _names(targets: Any, name: str) -> bool:
  """Whether a regular expression, or a list of names and their ends, fits."""
  if isinstance(targets, str):
    return re.fullmatch(targets, name) is not None
  return any(f'.{name}'.endswith(f'.{t}') for t in targets or ())


def _by_pattern(patterns: Mapping[str, Any], name: str, *, default: Any) -> Any:
  """The value of the first pattern that fits the end of a name."""
  for pattern, value in patterns.items():
    if re.match(rf'(.*\.)?({pattern})$', name):
      return value
  return default


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 200 else f'{text[:200]}…'
