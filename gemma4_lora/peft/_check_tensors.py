"""Checks that tensors, config and model of a PEFT folder agree."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import math

from gemma4_lora import variants
from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _linears
from gemma4_lora.peft import _adapter_config
from gemma4_lora.peft import _expert_tensors
from gemma4_lora.peft import _peft_modules
from gemma4_lora.peft import _sites
from gemma4_lora.peft import _tensors

Found = _peft_modules.Found


def match(
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
    rows: Sequence[_linears.Linear],
) -> list[Found]:
  """Returns all modules that the file adapts, after checks.

  Args:
    tensors: Tensors of the file.
    config: The same folder's config.
    rows: The model's table.

  Raises:
    ValueError: File, config and model do not agree.
  """
  _check_pairs(tensors, config)
  found, unknown = _peft_modules.match(tensors, config, rows)
  _check_fit(found, unknown, tensors, config, rows)
  _check_ranks(found, tensors, config)
  _check_targets(found, tensors, config)
  _check_missing(found, tensors, config, _sites.sites(rows))
  _check_uniform(found, tensors)
  return found


def _check_fit(
    found: Sequence[Found],
    unknown: Sequence[str],
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
    rows: Sequence[_linears.Linear],
) -> None:
  """Raises if the model lacks an adapted module, or has another shape."""
  problems = []
  if unknown:
    problems.append(
        f'{len(unknown)} modules that the model does not have:'
        f' {_sites.listed(unknown)}. {_peft_modules.hint(unknown, rows)}'.strip()
    )
  dead = [x.full_name for x in found if not x.site.rows[0].live]
  if dead:
    problems.append(
        f'{len(dead)} modules whose result the model never uses:'
        f' {_sites.listed(dead)}. Their layers read the keys and values of'
        ' another layer, and transformers has no such modules.'
    )
  wrong = [text for x in found for text in _misshaped(x, config.variant)]
  if wrong:
    problems.append(
        f'{len(wrong)} tensors of another shape: {_sites.listed(wrong)}.'
    )
  if problems:
    raise ValueError(
        f'{tensors.path} does not fit the model. It has {" And ".join(problems)}'
        ' Is it LoRA of another Gemma 4, or of another size?'
    )


def _misshaped(x: Found, variant: variants.Variant) -> Iterator[str]:
  """Yields problems of a module's shapes, without its rank."""
  count, fan_in, fan_out = _sizes(x)
  size = {'in': fan_in, 'out': fan_out, 'rank': count * x.branch.rank}
  for leaf in variant.leaves:
    array = x.branch.leaves[leaf.name]
    sides = leaf.sides[::-1]  # As PyTorch has them.
    fits = array.ndim == len(sides) and all(
        side == 'rank' or got == size[side]
        for side, got in zip(sides, array.shape, strict=True)
    )
    if not fits:
      key = _tensors.key(x.branch.module, leaf.name)
      want = tuple(size[side] for side in sides)
      yield f'{key}: file {array.shape}, model {want}'


def _sizes(x: Found) -> tuple[int, int, int]:
  """Returns how many experts are packed, and the sizes of input and output."""
  rows = x.site.rows
  fan_in, fan_out = math.prod(rows[0].in_shape), math.prod(rows[0].out_shape)
  if not x.site.parameter:
    return 1, fan_in, fan_out
  return rows[0].batch_shape[0], fan_in, fan_out * len(rows)  # Gate and up.


def _check_ranks(
    found: Sequence[Found],
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
) -> None:
  """Raises on a rank that is not the config's."""
  for x in found:
    branch = x.branch
    count, _, _ = _sizes(x)
    ranks = {branch.a.shape[0] / count, branch.b.shape[1] / count}
    if ranks != {branch.rank}:
      got = ' and '.join(f'{rank:g}' for rank in sorted(ranks))
      raise ValueError(
          f'{tensors.path}: {branch.module} has rank {got} (A'
          f' {branch.a.shape}, B {branch.b.shape}), but {config.path} says'
          f' {branch.rank}: r={config.r},'
          f' rank_pattern={dict(config.rank_pattern)}.'
      )


def _check_pairs(
    tensors: _tensors.Tensors, config: _adapter_config.PeftConfig
) -> None:
  """Raises unless each module has the leaves of the config's variant."""
  wanted = {leaf.name for leaf in config.variant.leaves}
  lacking, extra = [], {}
  for module, arrays in tensors.modules.items():
    lacking += [_tensors.key(module, p) for p in sorted(wanted - arrays.keys())]
    for name in sorted(arrays.keys() - wanted):
      extra.setdefault(name, []).append(_tensors.key(module, name))
  if lacking:
    raise ValueError(
        f'{tensors.path} lacks {len(lacking)} tensors:'
        f' {_sites.listed(lacking)} ({config.path.name} has'
        f' {_settings(config)}).'
    )
  for variant, leaf in variants.owners():
    keys = extra.get(leaf.name)
    if keys:
      raise ValueError(
          f'{tensors.path} has {len(keys)} {leaf.plural} of {variant.name},'
          f' {_sites.listed(keys)}, but {config.path} has {_settings(config)}.'
      )


def _settings(config: _adapter_config.PeftConfig) -> str:
  """Returns the variant of a config, for messages."""
  settings = variants.arguments(config.variant).items()
  return ', '.join(f'{name}={value}' for name, value in settings)


def _check_targets(
    found: Sequence[Found],
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
) -> None:
  """Raises if the file has modules that its config does not target."""
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
        f' target, {_sites.listed(extra)}: {config.targets}. PEFT would ignore'
        ' them.'
    )


def _check_missing(
    found: Sequence[Found],
    tensors: _tensors.Tensors,
    config: _adapter_config.PeftConfig,
    sites: Mapping[str, _sites.Site],
) -> None:
  """Raises if the config targets modules that the file does not have."""
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
        f' {_sites.listed(lacking)}. It has {config.targets},'
        f' target_parameters={list(config.target_parameters)}.'
    )


def _wanted(
    config: _adapter_config.PeftConfig,
    sites: Mapping[str, _sites.Site],
    prefixes: Mapping[bool, str],
    *,
    per_expert: bool,
) -> Iterator[str]:
  """Yields the names that PEFT would adapt in this model.

  Args:
    config: What is targeted.
    sites: What the model has.
    prefixes: Prefixes of the text tower (True) and of other towers (False).
    per_expert: Whether experts are modules of their own.
  """
  text = prefixes.get(True, _hf_names.prefixes('text')[0])
  towers = prefixes.get(False, _hf_names.towers_beside(text))
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
        row.tower != 'text' or row.is_router or row.is_routed
    ):
      continue  # There or not: who wrote it leaves open what linears it knew.
    elif config.targets_module(prefix + name):
      yield name


def _is_expert(site: _sites.Site) -> bool:
  """Whether it is one projection of one expert."""
  return site.rows[0].is_routed and not site.parameter


def _check_uniform(found: Sequence[Found], tensors: _tensors.Tensors) -> None:
  """Raises if one of our leaves would need several ranks, or has gaps."""
  by_row: dict[str, list[Found]] = {}
  for x in found:
    if x.site.index is not None:
      by_row.setdefault(x.site.rows[0].name, []).append(x)
  for name, parts in by_row.items():
    (row,) = parts[0].site.rows
    wanted = (
        _expert_tensors.module_names(row)
        if _is_expert(parts[0].site)
        else (row.hf_names)
    )
    there = {x.branch.name for x in parts}
    lacking = [n for n in wanted if n not in there]
    if lacking:
      raise ValueError(
          f'{tensors.path} adapts {len(there)} of the {len(wanted)} modules of'
          f' {name}, which is one weight here: LoRA is on all or none. It lacks'
          f' {_sites.listed(lacking)}.'
      )
    settings = {(x.branch.rank, x.branch.alpha) for x in parts}
    if len(settings) > 1:
      raise ValueError(
          f'{tensors.path}: the modules of {name}, which is one weight here,'
          f' have several ranks and alphas: {sorted(settings)}.'
      )
