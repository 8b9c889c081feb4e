"""Checks that a LoRA is complete and changes the model."""

from collections.abc import Iterator
from collections.abc import Mapping
import os
from typing import Any

from gemma import peft
import jax
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _pending
from gemma4_lora.nn.inspect import _agreement
from gemma4_lora.nn.inspect import _check_file
from gemma4_lora.nn.inspect import _effect
from gemma4_lora.nn.inspect import _report

# Experts that no token was sent to keep a zero B. A larger share is an error.
_MAX_IDLE = 0.25

_some = _report.some


def check(
    model: _lora.LoRA,
    params: Mapping[str, Any],
    *,
    tokens: Any = None,
    fused: Mapping[str, Any] | None = None,
    file: os.PathLike[str] | str | None = None,
) -> _report.Report:
  """Checks that LoRA is whole, changes the model, and survives fusing.

  ```python
  report = g4.nn.check(model, params, file='my_lora')
  print(report)
  assert report.ok, report.problems
  ```

  Args:
    model: A `g4.nn.LoRA`.
    params: Its parameters, nested. Without the base, checks that need it are
      left out, and the report says so.
    tokens: `[batch, length]`, on which logits are compared; default: a few
      random ones.
    fused: What `g4.nn.fuse_params` gave, or was read back from where it was
      written; default: `params` are fused here.
    file: A PEFT folder that should hold the same LoRA.

  Returns:
    A report. Problems of the LoRA are listed there and do not raise.

  Raises:
    ValueError: `model` is no `g4.nn.LoRA`.
  """
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        f'g4.nn.check takes a g4.nn.LoRA. Got: {type(model).__name__}'
    )
  base, lora = peft.split_params(dict(params))
  problems, notes = list(_incomplete(model, lora)), []
  if text := _pending.not_set(_trees.flatten(lora)):
    problems.append(text)
  sound = not problems
  rows: tuple[_effect.Effect, ...] = ()
  logits: dict[str, float] = {}
  if sound:
    rows = _effect.effects(model, base, lora)
    broken = [x.name for x in rows if not np.isfinite(x.norm)]
    problems += _nan(broken)
    problems += _zero(rows)
    notes += _idle(rows)
    sound = not broken
  if not jax.tree.leaves(base):
    notes.append('params has no base: logits were not compared.')
  elif sound:
    logits = _agreement.logits(model, base, params, tokens, fused)
    problems += _agreement.different(model, logits)
    notes += _agreement.rounded(model, logits)
    notes += _agreement.dequantized(model, base)
    if fused is not None:
      problems += _agreement.not_fused(model, base, lora, fused)
    if _init.is_from_base(model.init_lora_weights):
      notes.append(
          f'init_lora_weights={model.init_lora_weights!r}: "base" is what it'
          ' left of the released one, without which LoRA is not to be used.'
      )
  if file is not None:
    found = _check_file.check_file(file, model=model, lora=lora)
    problems += found.problems
    notes += found.notes
  return _report.Report(
      rows=rows,
      num_projections=len(model.adapted) + len(model.saved),
      logits=logits,
      problems=tuple(problems),
      notes=tuple(notes),
  )


def _incomplete(model: _lora.LoRA, lora: Mapping[str, Any]) -> Iterator[str]:
  """Yields missing leaves, and leaves that the model does not read."""
  there = _trees.dotted(lora)
  wanted = model.lora_shapes
  lacking = [path for path in wanted if path not in there]
  if lacking:
    yield (
        f'{len(lacking)} of {len(wanted)} LoRA leaves of the model are missing:'
        f' {_some(lacking)}. Load the whole file or run, or give the model the'
        ' targets= that were trained.'
    )
  extra = [path for path in there if path not in wanted]
  if extra:
    yield (
        f'{len(extra)} LoRA leaves are not in the model, which would ignore'
        f' them: {_some(extra)}. Give the model the targets= that were trained.'
    )
  wrong = [
      f'{path} {there[path].shape}, model {tuple(shape)}'
      for path, shape in wanted.items()
      if path in there and there[path].shape != tuple(shape)
  ]
  if wrong:
    yield (
        f'{len(wrong)} LoRA leaves have another shape: {_some(wrong)}. Is it'
        ' another rank=, or another model?'
    )


def _nan(names: list[str]) -> Iterator[str]:
  if names:
    yield (
        f'NaN or infinite values in {len(names)} projections: {_some(names)}.'
        ' Training diverged: take an earlier checkpoint.'
    )


def _zero(rows: tuple[_effect.Effect, ...]) -> Iterator[str]:
  """Yields projections whose LoRA does nothing."""
  zero = [x.name for x in rows if x.num_zero == x.num_matrices]
  if len(zero) == len(rows):
    yield (
        f'LoRA does nothing: B·A is zero in all {len(rows)} projections. It was'
        ' saved before the first step, or not trained: is the optimizer'
        ' kd.optim.partial_updates(…, mask=kd.optim.select("lora"))?'
    )
  elif zero:
    yield (
        f'B·A is zero in {len(zero)} of {len(rows)} projections:'
        f' {_some(zero)}. They were lost on the way, or not trained.'
    )
  partly = [
      f'{x.name} ({x.num_zero} of {x.num_matrices})'
      for x in rows
      if _MAX_IDLE * x.num_matrices <= x.num_zero < x.num_matrices
      and x.num_zero
  ]
  if partly:
    yield (
        f'B·A is zero for many experts or layers of {len(partly)} projections:'
        f' {_some(partly)}. They were lost on the way, or no token was ever sent'
        ' to them.'
    )


def _idle(rows: tuple[_effect.Effect, ...]) -> Iterator[str]:
  idle = [
      f'{x.name} ({x.num_zero} of {x.num_matrices})'
      for x in rows
      if 0 < x.num_zero < _MAX_IDLE * x.num_matrices
  ]
  if idle:
    yield f'Experts or layers without effect: {_some(idle)}.'
