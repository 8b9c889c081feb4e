"""Reads `adapter_config.json`, and its settings of each module."""

from collections.abc import Mapping
import dataclasses
import re
from typing import Any

from etils import epath

from gemma4_lora import variants
from gemma4_lora.host.files import _json_objects
from gemma4_lora.peft import _field_types
from gemma4_lora.peft import _linear_regex

NAME = 'adapter_config.json'

# Settings under which PEFT computes something that no variant here does. The
# value is a neutral one, besides None, False and empty.
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
# What PEFT puts around some expressions, to match whole segments.
_ABOVE, _BELOW = r'(?:.*\.)?', r'(?:\..*)?'
# As PEFT names them -> as `g4.nn.LoRA(init_lora_weights=)` does.
_INITS = {
    True: 'default',
    False: 'default',
    None: 'default',
    'gaussian': 'gaussian',
    'orthogonal': 'orthogonal',
    'olora': 'olora',
    'eva': 'default',  # These do not change the base.
}
# With the number of iterations of a randomised SVD.
_PISSA = re.compile(r'pissa(_niter_[1-9]\d{0,8})?', re.ASCII)


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
  base_model_name_or_path: str | None = None
  expressions: _linear_regex.Expressions = dataclasses.field(
      default_factory=_linear_regex.Expressions, repr=False, compare=False
  )

  def rank(self, name: str) -> int:
    """Rank of a module, by its name in the model."""
    return self._by_pattern('rank_pattern', name, default=self.r)

  def alpha(self, name: str) -> float:
    """Numerator of a module's scale."""
    return self._by_pattern('alpha_pattern', name, default=self.lora_alpha)

  def targets_parameter(self, name: str) -> bool:
    """Whether PEFT would adapt a parameter, by its name in the model."""
    return any(f'.{name}'.endswith(f'.{t}') for t in self.target_parameters)

  def saves_module(self, name: str) -> bool:
    """Whether PEFT would train a module in full, by its name in the model.

    PEFT compares ends of names, not whole segments: `norm` matches `q_norm`
    too. Modules within such a module are trained with it.

    Args:
      name: The module's name.
    """
    segments = name.split('.')
    whole = ['.'.join(segments[:i]) for i in range(1, len(segments) + 1)]
    return any(x.endswith(self.modules_to_save) for x in whole)

  def targets_module(self, name: str) -> bool:
    """Whether PEFT would adapt a linear, by its name in the model."""
    # Whole segments, other than in `saves_module`.
    if any(
        self._fits('modules_to_save', x, name, before=_ABOVE, behind=_BELOW)
        for x in self.modules_to_save
    ):
      return False
    if self.exclude_modules and self._names('exclude_modules', name):
      return False
    if isinstance(self.target_modules, str):
      return self.target_modules == 'all-linear' or self._names(
          'target_modules', name
      )
    return self._names('target_modules', name) and self._in_layers(name)

  def _in_layers(self, name: str) -> bool:
    """Whether `layers_to_transform` allows a module."""
    layers = self.layers_to_transform
    if layers is None or layers == []:
      return True
    patterns = self.layers_pattern or [r'[^.]*']
    if isinstance(patterns, str):
      patterns = [patterns]
    segments = name.split('.')
    for pattern in patterns:
      for i, segment in enumerate(segments[:-1]):
        above = '.'.join(segments[:i])
        if segment.isdecimal() and self._fits(
            'layers_pattern', pattern, above, before=_ABOVE
        ):
          wanted = [layers] if isinstance(layers, int) else layers
          return int(segment) in wanted
    return False

  def _names(self, field: str, name: str) -> bool:
    """Whether a regular expression, or a list of names and their ends, fits."""
    targets = getattr(self, field)
    if isinstance(targets, str):
      return self._fits(field, targets, name)
    return any(f'.{name}'.endswith(f'.{t}') for t in targets or ())

  def _by_pattern(self, field: str, name: str, *, default: Any) -> Any:
    """The value of the first pattern that fits the end of a name."""
    for pattern, value in getattr(self, field).items():
      if self._fits(field, pattern, name, before=_ABOVE):
        return value
    return default

  def _fits(self, field: str, pattern: str, name: str, **around: str) -> bool:
    try:
      return self.expressions.fits(pattern, name, **around)
    except ValueError as e:
      raise ValueError(
          f'{self.path}: {field}: {_field_types.short(pattern)} {e}.'
      ) from e

  @property
  def targets(self) -> str:
    """Its settings of modules, for messages."""
    said = [f'target_modules={_field_types.short(self.target_modules)}']
    for name in ('exclude_modules', 'layers_to_transform'):
      value = getattr(self, name)
      if value not in (None, [], ''):
        said.append(f'{name}={_field_types.short(value)}')
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
  fields = _json_objects.parse(data, path=path)
  kind = fields.get('peft_type')
  if kind != 'LORA':
    raise ValueError(
        f"{path}: peft_type={_field_types.short(kind)}, and g4.nn.LoRA is 'LORA' only."
    )
  for name, off in _UNSUPPORTED.items():
    value = fields.get(name)
    if value not in (None, False, [], {}, '', off):
      raise ValueError(
          f'{path}: {name}={_field_types.short(value)}, which g4.nn.LoRA does not have'
          f' (it has {name}={off!r}).'
      )
  _field_types.check(path, fields)
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
      base_model_name_or_path=fields.get('base_model_name_or_path'),
  )


def _init(path: epath.Path, value: Any) -> str:
  """Returns how A and B started, by our names."""
  if isinstance(value, str) and _PISSA.fullmatch(value):
    return value
  known = value is None or isinstance(value, (bool, str))
  if not known or value not in _INITS:
    raise ValueError(
        f'{path}: init_lora_weights={value!r} changes the base in a way that'
        ' g4.nn.LoRA does not have: it knows pissa and olora.'
    )
  return _INITS[value]
