"""Accepts a plan, or raises an error with all its problems."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import difflib
import typing
from typing import Any

from gemma4_lora.ckpts.restore import _config_fields
from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.ckpts.sources import _source
from gemma4_lora.gemma4 import _names

Policy = _source.Policy

# How many leaves of one kind a message shows.
_SHOWN = 8


def check_choice(who: str, arg: str, value: str) -> None:
  """Checks a value of `missing=`, `unexpected=` or `nan=`.

  Raises:
    ValueError: The value is unknown.
  """
  choices = typing.get_args(Policy)
  if value not in choices:
    raise ValueError(f'{who}: {arg} must be one of {choices}, got {value!r}.')


def check(
    plan: _restore_plan.Plan,
    trees: Sequence[_restore_plan.SubTree],
    *,
    who: str,
    where: str,
    missing: Policy,
    unexpected: Policy,
    has_policy: bool,
    spelled: Callable[[Any], Mapping[Any, str]] = lambda shapes: {},
) -> None:
  """Raises if the plan must not be carried out.

  Args:
    plan: The plan.
    trees: The sub-trees that it was made from.
    who: The transform that asks, for messages.
    where: The checkpoint, for messages.
    missing: Whether leaves that the checkpoint lacks are an error.
    unexpected: Whether leaves that nothing takes are an error.
    has_policy: Whether the transform has the arguments `missing=` and
      `unexpected=`, for messages.
    spelled: See `Source.spelled`.

  Raises:
    ValueError: Lists all problems, and the argument that changes each.
  """
  for arg, glob, names in plan.unmatched_globs:
    raise ValueError(
        f'{who}: {arg}: {glob!r} matches none of {len(names)} leaves. Globs are'
        ' relative to the sub-tree, without'
        f' "params.".{did_you_mean(glob, names)}'
    )
  for tree in trees:
    older = _names.older_gemma(
        [tree.relative(x) for x in tree.model],
        [tree.relative(x) for x in tree.stored],
    )
    if older:
      raise ValueError(
          f'{who}: this is a checkpoint of {older}, and the model is Gemma 4:'
          f' {where}. No layer of the checkpoint has a `skip_scale`. Give the'
          ' path of a Gemma 4 checkpoint, or build the model of the'
          " checkpoint's family."
      )
  problems = [
      *_layer_counts(trees),
      *_mismatched(plan.mismatched),
      *_wrong_dtype(plan.wrong_dtype),
      *_wrong_format(plan.wrong_format),
  ]
  prefix = '' if has_policy else 'wrapped=g4.ckpts.PartialLoad(path=…, '
  suffix = '' if has_policy else ')'
  if plan.missing and missing == 'error':
    shapes = {x.rel: x.shape for x in plan.missing}
    problems += _missing(
        plan, f'{prefix}missing="warn"{suffix}', spelled(shapes)
    )
  if plan.unexpected and unexpected == 'error':
    problems += _unexpected(plan, f'{prefix}unexpected="warn"{suffix}')
  is_fatal = plan.mismatched or plan.wrong_dtype or plan.wrong_format
  is_fatal = is_fatal or (plan.missing and missing == 'error')
  if is_fatal or (plan.unexpected and unexpected == 'error'):
    raise ValueError(
        f'{who}: the checkpoint does not fit the model: {where}\n'
        + '\n'.join(problems)
    )
  if not plan.loads:
    raise ValueError(
        f'{who}: nothing to restore: no leaf of the state takes a value from'
        f' {where}.'
    )


def did_you_mean(name: str, names: Iterable[str]) -> str:
  close = difflib.get_close_matches(name, list(names), cutoff=0.5)
  return f' Did you mean {close}?' if close else ''


def model_leaf(leaf: _restore_plan.Leaf) -> str:
  return f'  {leaf.name} {leaf.shape} {leaf.dtype}'


def _layer_counts(trees: Sequence[_restore_plan.SubTree]) -> Iterable[str]:
  for tree in trees:
    in_model = _names.num_layers(tree.relative(x) for x in tree.model)
    stored = _names.num_layers(tree.relative(x) for x in tree.stored)
    if in_model and stored and in_model != stored:
      yield (
          f'The checkpoint has {stored} layers and the model {in_model}: it'
          ' belongs to another model, or `attention_types` of the config'
          ' differs (number of layers).'
      )


def _mismatched(loads: Sequence[_restore_plan.Load]) -> Iterable[str]:
  if not loads:
    return
  count: dict[str, int] = {}
  for x in loads:
    for field in _config_fields.differing(
        x.model.rel, x.model.shape, x.stored.shape
    ):
      count[field] = count.get(field, 0) + 1
  fields = sorted(count, key=count.__getitem__, reverse=True)[:_SHOWN]
  yield f'{len(loads)} leaves have another shape:'
  yield from _list(
      loads,
      lambda x: (
          f'  {x.model.name}: model {x.model.shape}, checkpoint'
          f' {x.stored.shape}'
      ),
  )
  if fields:
    yield f'Fields of the config that differ, most likely: {"; ".join(fields)}.'


def _wrong_dtype(loads: Sequence[_restore_plan.Load]) -> Iterable[str]:
  if not loads:
    return
  yield (
      f'{len(loads)} leaves have a dtype that does not convert (only floats'
      ' convert to floats):'
  )
  yield from _list(
      loads,
      lambda x: (
          f'  {x.model.name}: model {x.model.dtype}, checkpoint'
          f' {x.stored.dtype}'
      ),
  )


def _wrong_format(loads: Sequence[_restore_plan.Load]) -> Iterable[str]:
  if not loads:
    return
  yield (
      f'{len(loads)} leaves of the checkpoint are quantised, and those of the'
      ' model are not, or otherwise:'
  )
  none = 'not quantised'
  yield from _list(
      loads,
      lambda x: (
          f'  {x.model.name}: model {x.model.encoding or none}, checkpoint'
          f' {x.stored.encoding or none}'
      ),
  )
  encodings = (x.stored.encoding for x in loads)
  argument = _quantized_leaves.argument(filter(None, encodings))
  yield (
      f'Build the model as g4.nn.LoRA({argument}), which is what they were made'
      ' with, or restore from a checkpoint that is not quantised.'
  )


def _missing(
    plan: _restore_plan.Plan, how: str, spelled: Mapping[Any, str]
) -> Iterable[str]:
  yield f'{len(plan.missing)} leaves of the model are not in the checkpoint:'
  # Finding close matches is slow, and many missing leaves have another cause
  # than a name.
  names = [x.name for x in plan.unexpected]
  few = len(plan.missing) <= _SHOWN
  for x in plan.missing:
    in_file = f', in the file {spelled[x.rel]}' if x.rel in spelled else ''
    close = did_you_mean(x.name, names) if few else ''
    yield f'{model_leaf(x)}{in_file}{close}'
  if all(_names.tower_of(x.rel) for x in plan.missing):
    yield (
        'All belong to vision or audio towers, which the checkpoint does not'
        ' have: build the model with text_only=True, as'
        ' gm.nn.Gemma4_E2B(tokens=…, text_only=True).'
    )
  elif all(x.path[0] == 'collections' for x in plan.missing):
    yield (
        "To restore the parameters alone: new_to_old={'params': 'params'} of"
        ' PartialLoad.'
    )
  yield (
      "To keep the model's own values for them:"
      f' {how}, or name them in ignore_model_keys=.'
  )


def _unexpected(plan: _restore_plan.Plan, how: str) -> Iterable[str]:
  yield f'{len(plan.unexpected)} leaves of the checkpoint are not in the model:'
  yield from _list(plan.unexpected, model_leaf)
  yield (f'To leave them out: {how}, or name them in ignore_restored_keys=.')


def _list(items: Sequence, to_text: Callable[..., str]) -> Iterable[str]:
  yield from map(to_text, items[:_SHOWN])
  if len(items) > _SHOWN:
    yield f'  … and {len(items) - _SHOWN} more'
