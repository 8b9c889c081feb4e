"""Rules: what a user writes to choose linears."""

from collections.abc import Sequence
import dataclasses
import numbers
import re
from typing import Any
from typing import Literal

from gemma4_lora.gemma4 import _hf_names

# Fields of `Rule` that may be written as one value or several.
_SEQUENCES = ('select', 'exclude', 'layers')

# float32's.
_SMALLEST, _LARGEST = 1e-37, 3e38


@dataclasses.dataclass(frozen=True)
class Rule:
  """Selects linears, and may give them their own settings.

  ```python
  g4.targets.Rule('mlp', layers=[0, -1], exclude='down', rank=4)
  ```

  Attributes:
    select: A string of `g4.targets`, or several; all their linears are
      selected.
    layers: Only these layers: a number, several, or a slice as a string:
      `'20:'`, `'-4:'`, `'0:10:2'`. Negative ones count from the last.
    attention: Only layers of `'local'` (sliding window) or `'global'`
      attention.
    tower: Only this tower: `'text'`, `'vision'` or `'audio'`. With it, names
      of projections mean that tower's.
    exclude: Strings as in `select`, whose linears are left out.
    rank: Replaces the model's.
    alpha: Replaces the model's. If only `rank` is given and the model has no
      `alpha` either, it is the rule's rank: scale 1.
    dropout: Replaces the model's.
    regex: Whether the strings are regular expressions on Hugging Face's module
      names, as PEFT takes a string. See `g4.targets.peft`.

  Raises:
    ValueError: On construction, for a setting that no linear could have.
  """

  select: str | Sequence[str]
  _: dataclasses.KW_ONLY
  layers: int | str | Sequence[int] | None = None
  attention: Literal['local', 'global'] | None = None
  tower: Literal['text', 'vision', 'audio'] | None = None
  exclude: str | Sequence[str] = ()
  rank: int | None = None
  alpha: float | None = None
  dropout: float | None = None
  regex: bool = False

  def __post_init__(self):
    for name in _SEQUENCES:
      value = getattr(self, name)
      if isinstance(value, list):  # JSON and configs hold lists.
        object.__setattr__(self, name, tuple(value))
    _check_strings('select', self.select)
    _check_strings('exclude', self.exclude)
    _check_choice('attention', self.attention, ('local', 'global'))
    _check_choice('tower', self.tower, ('text', 'vision', 'audio'))
    _check_layers(self.layers)
    if self.rank is not None:
      check_rank(self.rank)
    if self.alpha is not None:
      check_alpha(self.alpha)
    if self.dropout is not None:
      check_dropout(self.dropout)

  @property
  def selects(self) -> tuple[str, ...]:
    """`select` as a tuple."""
    return _as_tuple(self.select)

  @property
  def excludes(self) -> tuple[str, ...]:
    """`exclude` as a tuple."""
    return _as_tuple(self.exclude)

  def __repr__(self) -> str:
    """As a user would write it, without defaults."""
    args = [repr(self.select)]
    for field in dataclasses.fields(self)[1:]:
      value = getattr(self, field.name)
      if value != field.default:
        args.append(f'{field.name}={value!r}')
    return f'Rule({", ".join(args)})'


def text(**kwargs: Any) -> Rule:
  """Every used linear of the text model except experts and the router.

  Args:
    **kwargs: Arguments of `Rule`; all ready rules take them.
  """
  return Rule('text', **kwargs)


def attention(**kwargs: Any) -> Rule:
  """q, k, v and o."""
  return Rule('attention', **kwargs)


def mlp(**kwargs: Any) -> Rule:
  """gate, up and down of the dense MLP."""
  return Rule('mlp', **kwargs)


def per_layer_inputs(**kwargs: Any) -> Rule:
  """The three projections of the per-layer inputs (E2B and E4B)."""
  return Rule('per_layer_inputs', **kwargs)


def experts(**kwargs: Any) -> Rule:
  """gate, up and down of the routed experts (26B_A4B)."""
  return Rule('experts', **kwargs)


def shared_expert(**kwargs: Any) -> Rule:
  """gate, up and down of the dense MLP beside the experts (26B_A4B)."""
  return Rule('shared_expert', **kwargs)


def vision(**kwargs: Any) -> Rule:
  """Attention and MLP of the vision tower."""
  return Rule('vision', **kwargs)


def audio(**kwargs: Any) -> Rule:
  """Feed-forward, attention and convolution linears of the audio tower."""
  return Rule('audio', **kwargs)


def multimodal_projections(**kwargs: Any) -> Rule:
  """The projections of the towers' outputs into the width of the text."""
  return Rule('multimodal_projections', **kwargs)


def peft(
    target_modules: str | Sequence[str],
    *,
    exclude_modules: str | Sequence[str] = (),
    layers_to_transform: int | Sequence[int] | None = None,
    layers_pattern: str | Sequence[str] | None = None,
    **kwargs: Any,
) -> Rule:
  """A rule in the words of a PEFT `LoraConfig`.

  As there, a string is a regular expression on the whole module name (or
  `'all-linear'`), and a list has names or ends of names.

  Args:
    target_modules: See PEFT: `r'.*\\.self_attn\\.(q|v)_proj'` or `['q_proj']`.
    exclude_modules: See PEFT; the same kinds of value as `target_modules`.
    layers_to_transform: See PEFT.
    layers_pattern: See PEFT: which lists of layers the numbers are about.
      `'language_model.layers'` is the text, `'encoder.layers'` the vision tower,
      `'layers'` all of them.
    **kwargs: Arguments of `Rule`.

  Raises:
    ValueError: `layers_pattern` without `layers_to_transform`, or it fits no list
      of layers, or some but not all.
  """
  if layers_pattern:
    kwargs = _of_pattern(layers_pattern, layers_to_transform, kwargs)
  regex = isinstance(target_modules, str) and target_modules != 'all-linear'
  return Rule(
      target_modules,
      exclude=exclude_modules,
      layers=layers_to_transform,
      regex=regex,
      **kwargs,
  )


def _of_pattern(
    pattern: str | Sequence[str],
    layers: int | Sequence[int] | None,
    kwargs: dict[str, Any],
) -> dict[str, Any]:
  """Returns arguments of `Rule`, with the tower whose layers a pattern is about."""
  given = f'layers_pattern={pattern!r}'
  if layers is None:
    raise ValueError(f'{given} needs layers_to_transform=, as in PEFT.')
  lists = _hf_names.LAYER_LISTS
  towers = [
      tower
      for tower, name in lists.items()
      if any(re.fullmatch(rf'.*\.{x}', name) for x in _as_tuple(pattern))
  ]
  if len(towers) == len(lists):
    return kwargs
  if len(towers) != 1:
    raise ValueError(
        f'{given} fits {towers or "none"} of {list(lists.values())}. Give one'
        ' rule for each.'
    )
  (tower,) = towers
  if kwargs.get('tower', tower) != tower:
    raise ValueError(
        f'{given} is about the {tower} tower, and tower={kwargs["tower"]!r}.'
    )
  return kwargs | {'tower': tower}


def normalize(targets: Any, *, argument: str = 'targets') -> tuple[Rule, ...]:
  """Returns rules from what a user wrote: hashable, and fit for JSON.

  Args:
    targets: A rule or a string, or several.
    argument: The argument in which the user wrote them, for messages.

  Raises:
    ValueError: Anything else.
  """
  if not isinstance(targets, (list, tuple)):
    targets = [targets]
  rules = [Rule(t) if isinstance(t, str) else t for t in targets]
  for rule in rules:
    if not isinstance(rule, Rule):
      raise ValueError(
          f'{argument}= takes strings and rules, as {argument}=["q",'
          f' g4.targets.Rule("mlp", layers="20:")]. Got: {rule!r}'
      )
  return tuple(rules)


def check_rank(rank: Any) -> None:
  """Raises ValueError unless `rank` is a positive integer."""
  if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
    raise ValueError(f'rank= takes a positive integer. Got: {rank!r}')


def check_alpha(alpha: Any) -> None:
  """Raises ValueError unless `alpha` is a finite number other than 0.

  In float32, as branches are scaled.
  """
  if not _is_number(alpha) or not _SMALLEST < abs(alpha) < _LARGEST:
    raise ValueError(
        'alpha= takes a finite number other than 0, with which LoRA would do'
        f' nothing. Got: {alpha!r}'
    )


def check_dropout(dropout: Any) -> None:
  """Raises ValueError unless `dropout` is a rate."""
  if not _is_number(dropout) or not 0 <= dropout < 1:
    raise ValueError(f'dropout= takes a rate in [0, 1). Got: {dropout!r}')


def _is_number(value: Any) -> bool:
  is_real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  return is_real and value == value  # No NaN.


def check_no_settings(
    rule: Rule, *, argument: str, what: str, hint: str = ''
) -> None:
  """Raises for settings of A and B in a rule for parts without these.

  Args:
    rule: A rule.
    argument: The argument in which the user wrote it.
    what: The kind of parts that the rule selects, for messages: `'what is
      quantised'`.
    hint: Another fix, for messages: `', or …'`.

  Raises:
    ValueError: It has a rank, an alpha or a dropout.
  """
  for setting in ('rank', 'alpha', 'dropout'):
    if getattr(rule, setting) is not None:
      raise ValueError(
          f'{argument}={rule}: {what} has no {setting}. Drop {setting}={hint}.'
      )


def _as_tuple(value: str | Sequence[str]) -> tuple[str, ...]:
  return (value,) if isinstance(value, str) else tuple(value)


def _check_strings(name: str, value: Any) -> None:
  if isinstance(value, str):
    return
  if not isinstance(value, tuple) or not all(isinstance(v, str) for v in value):
    raise ValueError(
        f'Rule({name}=...) takes a string or a list of strings. Got: {value!r}'
    )


def _check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
  if value is not None and value not in choices:
    raise ValueError(
        f'Rule({name}=...) takes one of {list(choices)}. Got: {value!r}'
    )


def _check_layers(layers: Any) -> None:
  numbers = layers if isinstance(layers, tuple) else (layers,)
  if layers is None or all(
      isinstance(n, int) and not isinstance(n, bool) for n in numbers
  ):
    return
  try:
    parse_slice(layers)
  except (ValueError, AttributeError, TypeError):
    raise ValueError(
        'Rule(layers=...) takes a number, a list of numbers, or a slice as a'
        f' string, as "20:" or "-4:". Got: {layers!r}'
    ) from None


def parse_slice(layers: str) -> slice:
  """Returns `'20:'` as `slice(20, None)`.

  Raises:
    ValueError: `layers` is not a slice.
  """
  parts = [int(part) if part.strip() else None for part in layers.split(':')]
  if not 2 <= len(parts) <= 3:
    raise ValueError(layers)
  return slice(*parts)
