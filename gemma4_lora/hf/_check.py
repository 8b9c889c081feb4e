"""Matches the tensors of a PEFT folder with its config and with a model."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import math

from gemma4_lora import _linears
from gemma4_lora.hf import _branch
from gemma4_lora.hf import _config
from gemma4_lora.hf import _experts
from gemma4_lora.hf import _names
from gemma4_lora.hf import _tensors


@dataclasses.dataclass(frozen=True, kw_only=True)
class Found:
  """A module of the file, and what it is in the model.

  Attributes:
    site: Where it stands in the table.
    prefix: What its name in the model has before that of the branch.
    branch: Its arrays and settings.
  """

  site: _names.Site
  prefix: str
  branch: _branch.Branch

  @property
  def full_name(self) -> str:
    return f'{self.prefix}{self.branch.name}'


def match(
    tensors: _tensors.Tensors,
    config: _config.PeftConfig,
    rows: Sequence[_linears.Linear],
) -> list[Found]:
  """Returns all that the file adapts, once it is known to be sound.

  Args:
    tensors: Of the file.
    config: Of the same folder.
    rows: The model's table.

  Raises:
    ValueError: File, config and model do not agree.
  """
  sites = _names.sites(rows)
  _check_pairs(tensors, config)
  found = []
  for module, arrays in tensors.modules.items():
    prefix, name = _locate(module, tensors, config, sites)
    site = sites[name]
    _check_live(tensors, prefix + name, site)
    found.append(
        Found(
            site=site,
            prefix=prefix,
            branch=_branch.Branch(
                tower=site.rows[0].tower,
                name=name,
                module=module,
                rank=config.rank(prefix + name),
                alpha=config.alpha(prefix + name),
                a=arrays['A'],
                b=arrays['B'],
                m=arrays.get('m'),
            ),
        )
    )
  _check_targets(found, tensors, config)
  _check_shapes(found, tensors, config)
  _check_missing(found, tensors, config, sites)
  _check_uniform(found, tensors)
  return found


def _locate(
    module: str,
    tensors: _tensors.Tensors,
    config: _config.PeftConfig,
    sites: Mapping[str, _names.Site],
) -> tuple[str, str]:
  """Returns prefix and name of a module.

  Raises:
    ValueError: The model has none of that name.
  """
  for prefix, name in _names.candidates(module):
    if name in sites and not sites[name].parameter:
      return prefix, name
    parameter = _parameter(prefix, name, tensors, config, sites)
    if parameter is not None:
      return prefix, parameter
  raise ValueError(_unknown(module, tensors, sites))


def _parameter(
    prefix: str,
    name: str,
    tensors: _tensors.Tensors,
    config: _config.PeftConfig,
    sites: Mapping[str, _names.Site],
) -> str | None:
  """Returns the parameter that a wrapper adapts: by its place, if there are two.

  Raises:
    ValueError: The config names none, or too few.
  """
  experts = name.removesuffix('.base_layer')
  parameters = [f'{experts}.{p}' for p in ('gate_up_proj', 'down_proj')]
  if parameters[0] not in sites:
    return None
  inner = f'{prefix}{experts}.base_layer' in tensors.modules
  targeted = [p for p in parameters if config.targets_parameter(prefix + p)]
  if len(targeted) != 1 + inner:
    raise ValueError(
        f'{tensors.path} adapts {1 + inner} tensors of {prefix}{experts}, but'
        f' {config.path} names {len(targeted)} of them:'
        f' target_parameters={list(config.target_parameters)}.'
    )
  # PEFT wraps them in this order, each around what is there.
  return targeted[0] if name != experts else targeted[-1]


def _check_pairs(tensors: _tensors.Tensors, config: _config.PeftConfig) -> None:
  """Raises unless each module has A and B, and a magnitude under DoRA."""
  wanted = {'A', 'B', 'm'} if config.use_dora else {'A', 'B'}
  lacking, extra = [], []
  for module, arrays in tensors.modules.items():
    lacking += [_tensors.key(module, p) for p in sorted(wanted - arrays.keys())]
    extra += [_tensors.key(module, p) for p in sorted(arrays.keys() - wanted)]
  if lacking:
    raise ValueError(
        f'{tensors.path} lacks {len(lacking)} tensors:'
        f' {_names.listed(lacking)} ({config.path.name} has'
        f' use_dora={config.use_dora}).'
    )
  if extra:
    raise ValueError(
        f'{tensors.path} has {len(extra)} magnitudes of DoRA,'
        f' {_names.listed(extra)}, but {config.path} has use_dora=False.'
    )


def _check_live(
    tensors: _tensors.Tensors, name: str, site: _names.Site
) -> None:
  """Raises where the model never uses what is adapted."""
  row = site.rows[0]
  if not row.live:
    raise ValueError(
        f'{tensors.path} adapts {name}, whose result the model never uses:'
        f' layer {row.layer} reads the keys and values of another layer.'
        ' transformers has no such module. Is it of another model?'
    )


def _check_targets(
    found: Sequence[Found],
    tensors: _tensors.Tensors,
    config: _config.PeftConfig,
) -> None:
  """Raises if the file has what its config does not target."""
  if config.target_modules is None:  # Says nothing.
    return
  extra = [
      x.full_name
      for x in found
      if not x.site.parameter and not config.targets_module(x.full_name)
  ]
  if extra:
    raise ValueError(
        f'{tensors.path} has {len(extra)} modules that {config.path} does not'
        f' target, {_names.listed(extra)}: {config.targets}. PEFT would ignore'
        ' them.'
    )


def _check_shapes(
    found: Sequence[Found],
    tensors: _tensors.Tensors,
    config: _config.PeftConfig,
) -> None:
  """Raises on a rank that is not the config's, or a shape not the model's."""
  wrong = []
  for x in found:
    branch = x.branch
    count, shapes = _shapes(x)
    ranks = {branch.a.shape[0] / count, branch.b.shape[-1] / count}
    if branch.a.ndim == 2 and branch.b.ndim == 2 and ranks != {branch.rank}:
      got = ' and '.join(f'{r:g}' for r in sorted(ranks))
      raise ValueError(
          f'{tensors.path}: {branch.module} has rank {got} (A'
          f' {branch.a.shape}, B {branch.b.shape}), but {config.path} says'
          f' {branch.rank}: r={config.r},'
          f' rank_pattern={dict(config.rank_pattern)}.'
      )
    for part, want in shapes.items():
      got = {'A': branch.a, 'B': branch.b, 'm': branch.m}[part]
      if got is not None and got.shape != want:
        wrong.append(
            f'{_tensors.key(branch.module, part)}: file {got.shape}, model'
            f' {want}'
        )
  if wrong:
    raise ValueError(
        f'{tensors.path}: {len(wrong)} tensors have another shape than the'
        f' model: {_names.listed(wrong)}. Is it LoRA of another Gemma 4, or of'
        ' another size?'
    )


def _shapes(x: Found) -> tuple[int, dict[str, tuple[int, ...]]]:
  """Returns how many ranks are packed, and the shapes that the model wants."""
  rows, rank = x.site.rows, x.branch.rank
  fan_in = math.prod(rows[0].in_shape)
  fan_out = math.prod(rows[0].out_shape)
  count = 1
  if x.site.parameter:
    (count,) = rows[0].batch_shape
    fan_out *= len(rows)  # gate and up.
  return count, {
      'A': (count * rank, fan_in),
      'B': (fan_out, rank * count),
      'm': (fan_out,),
  }


def _check_missing(
    found: Sequence[Found],
    tensors: _tensors.Tensors,
    config: _config.PeftConfig,
    sites: Mapping[str, _names.Site],
) -> None:
  """Raises if the config targets what the file does not have."""
  there = {x.branch.name for x in found}
  prefixes = {x.branch.tower == 'text': x.prefix for x in found}
  per_expert = any(_is_expert(x.site) for x in found)
  lacking = [
      name
      for name in _wanted(config, sites, prefixes, per_expert=per_expert)
      if name not in there
  ]
  if lacking:
    raise ValueError(
        f'{tensors.path} lacks {len(lacking)} of'
        f' {len(lacking) + len(there)} modules that {config.path} targets:'
        f' {_names.listed(lacking)}. It has {config.targets},'
        f' target_parameters={list(config.target_parameters)}.'
    )


def _wanted(
    config: _config.PeftConfig,
    sites: Mapping[str, _names.Site],
    prefixes: Mapping[bool, str],
    *,
    per_expert: bool,
) -> Iterator[str]:
  """Yields the names that PEFT would adapt in this model.

  Args:
    config: What is targeted.
    sites: What the model has.
    prefixes: Of the text tower (True) and of others (False).
    per_expert: Whether experts are modules of their own.
  """
  text = prefixes.get(True, 'model.language_model.')
  # A model of text alone has no towers.
  towers = prefixes.get(False, 'model.' if 'language_model' in text else None)
  for name, site in sites.items():
    row = site.rows[0]
    prefix = text if row.tower == 'text' else towers
    if prefix is None or not row.live:
      continue
    if site.parameter:
      if config.targets_parameter(prefix + name):
        yield name
    elif _is_expert(site) and not per_expert:
      continue
    elif config.target_modules is None:
      continue
    elif config.target_modules == 'all-linear' and (
        row.tower != 'text' or row.group in ('router', 'experts')
    ):
      continue  # There or not: who wrote it leaves open what linears it knew.
    elif config.targets_module(prefix + name):
      yield name


def _is_expert(site: _names.Site) -> bool:
  """Whether it is one projection of one expert."""
  return site.rows[0].group == 'experts' and not site.parameter


def _check_uniform(found: Sequence[Found], tensors: _tensors.Tensors) -> None:
  """Raises where one leaf of ours would need several ranks, or has holes."""
  by_row: dict[str, list[Found]] = {}
  for x in found:
    if x.site.index is not None:
      by_row.setdefault(x.site.rows[0].name, []).append(x)
  for name, parts in by_row.items():
    (row,) = parts[0].site.rows
    wanted = (
        _experts.module_names(row)
        if _is_expert(parts[0].site)
        else (row.hf_names)
    )
    there = {x.branch.name for x in parts}
    lacking = [n for n in wanted if n not in there]
    if lacking:
      raise ValueError(
          f'{tensors.path} adapts {len(there)} of the {len(wanted)} modules of'
          f' {name}, which is one weight here: LoRA is on all or none. It lacks'
          f' {_names.listed(lacking)}.'
      )
    settings = {(x.branch.rank, x.branch.alpha) for x in parts}
    if len(settings) > 1:
      raise ValueError(
          f'{tensors.path}: the modules of {name}, which is one weight here,'
          f' have several ranks and alphas: {sorted(settings)}.'
      )


def _unknown(
    module: str,
    tensors: _tensors.Tensors,
    sites: Mapping[str, _names.Site],
) -> str:
  """Says that the model has no such module, and what may have been meant."""
  towers = ('vision_tower', 'audio_tower', 'embed_vision', 'embed_audio')
  if any(f'{t}.' in module for t in towers) and not any(
      site.rows[0].tower != 'text' for site in sites.values()
  ):
    hint = 'The model has no towers: make it with text_only=False.'
  else:
    ends = [name for _, name in _names.candidates(module)]
    close = difflib.get_close_matches(ends[-2 if len(ends) > 1 else 0], sites)
    hint = f'Did you mean {" or ".join(close)}? ' if close else ''
    hint += 'Is it LoRA of another Gemma 4, or of another size?'
  return f'{tensors.path}: the model has no linear {module}. {hint}'
