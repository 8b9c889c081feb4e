"""LoRA leaves from a file, into a state or into parameters."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import os
from typing import Any

from absl import logging
from etils import epath
from gemma import peft
import jax.numpy as jnp
from kauldron import kd
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import nn
from gemma4_lora import variants
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _lora_sources
from gemma4_lora.ckpts.restore import _policy
from gemma4_lora.host import _devices
from gemma4_lora.nn.branches import _pending

_WHO = 'LoadLoRA'
_SHOWN = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadLoRA(kd.ckpts.InitTransform):
  """Starts LoRA from an earlier training; the base is restored separately.

  ```python
  init_transform = kd.ckpts.MultiTransform(
      base=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path=...),
      ),
      lora=g4.ckpts.LoadLoRA(path='/path/to/a/run', model=cfg.ref.model),
  )
  ```

  By hand, for sampling, see `g4.ckpts.load_lora`.

  Attributes:
    path: A folder of `g4.ckpts.save_lora`; a Kauldron workdir of any
      checkpointer, with our LoRA or that of gemma's git HEAD; or a PEFT folder.
    step: Which checkpoint of a workdir; -1 for the last.
    model: The `g4.nn.LoRA` that is trained, `cfg.ref.model` in a config. With
      it, alpha and the like are compared; gemma's layout and PEFT's need it.
    missing: `'error'` or `'warn'`, if the file lacks LoRA leaves of the model.
      With `'warn'` they keep their fresh values.
    unexpected: The same for LoRA leaves that the model lacks. With `'warn'`
      they are left out.
    other_base: The same for LoRA that was trained on another base than the
      state's, if the file has a fingerprint of its base.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: It does not fit; says in what, with both sides.
  """

  path: epath.PathLike
  step: int = -1
  model: nn.LoRA | None = None
  missing: _policy.Policy = 'error'
  unexpected: _policy.Policy = 'error'
  other_base: _policy.Policy = 'error'

  def __post_init__(self):
    for name in ('missing', 'unexpected', 'other_base'):
      _policy.check_choice(_WHO, name, getattr(self, name))
    if self.model is not None and not isinstance(self.model, nn.LoRA):
      raise ValueError(
          f'{_WHO}: model must be the g4.nn.LoRA that is trained, got'
          f' {type(self.model).__name__}.'
      )

  def transform(self, state: Any) -> Any:
    flat = {_trees.join(k): x for k, x in _trees.flatten(state.params).items()}
    lora = {k: x for k, x in flat.items() if _trees.is_lora(_split(k))}
    if not lora:
      raise ValueError(
          f'{_WHO}: the model has no LoRA leaf. Use g4.nn.LoRA(rank=…, model=…).'
      )
    found = self._found({k: x.shape for k, x in lora.items()})
    self._check_base(found, state.params)
    params = state.params
    for name, like in lora.items():
      if name in found.leaves:
        value = _devices.place(found.leaves[name], like)
        params = _trees.replace_at(params, _split(name), value)
    return dataclasses.replace(state, params=params)

  def load(self, params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns parameters with the LoRA leaves in them, see `load_lora`."""
    assert self.model is not None
    shapes = self.model.lora_shapes
    found = self._found(shapes)
    self._check_base(found, params)
    base, lora = peft.split_params(dict(params))
    old = {_trees.join(k): x for k, x in _trees.flatten(lora).items()}
    new: dict[str, Any] = {}
    for name in shapes:
      value = old.get(name)
      if name in found.leaves:
        value = jnp.asarray(found.leaves[name], self.model.dtype)
      if value is not None:
        *scope, last = name.split('.')
        node = new
        for key in scope:
          node = node.setdefault(key, {})
        node[last] = value
    return peft.merge_params(base, new)

  def _found(
      self, shapes: Mapping[str, tuple[int, ...]]
  ) -> _lora_sources.Found:
    """Reads LoRA, and checks that it fits leaves of these shapes."""
    found = _lora_sources.read(
        self.path, step=self.step, model=self.model, who=_WHO
    )
    fatal = [*_unfit(found, shapes), *_other_settings(found, self.model)]
    for policy, argument, names, what in (
        (
            self.missing,
            'missing',
            [k for k in shapes if k not in found.leaves],
            'LoRA leaves of the model are not in it',
        ),
        (
            self.unexpected,
            'unexpected',
            [k for k in found.leaves if k not in shapes],
            'of its LoRA leaves are not in the model',
        ),
    ):
      if not names:
        continue
      text = f'{len(names)} {what}: {_some(names)}'
      if policy == 'warn':
        logging.warning('%s: %s: %s', _WHO, found.what, text)
      else:
        fatal.append(
            f'{text}. Set targets= of g4.nn.LoRA to what was trained, or'
            f' {argument}="warn".'
        )
    if not any(name in found.leaves for name in shapes):
      fatal.append('No leaf of it fits the model.')
    if fatal:
      raise ValueError(
          f'{_WHO}: {found.what} does not fit the model:\n'
          + '\n'.join(f'  {problem}' for problem in fatal)
      )
    if found.scales is None or self.model is None:
      logging.warning(
          '%s: alpha and use_rslora are not compared: %s.',
          _WHO,
          f'{found.what} has none'
          if found.scales is None
          else 'give model=cfg.ref.model',
      )
    logging.info(
        '%s: %d LoRA leaves from %s.', _WHO, len(found.leaves), found.what
    )
    return found

  def _check_base(self, found: _lora_sources.Found, params: Any) -> None:
    if found.fingerprint is None:
      return
    problems = _fingerprint.base_differences(found.fingerprint, params)
    if not problems:
      return
    text = (
        f'{_WHO}: {found.what} was trained on another base than the'
        ' parameters have:\n' + '\n'.join(f'  {x}' for x in problems)
    )
    if self.other_base == 'error':
      raise ValueError(
          f'{text}\nRestore that base first (in kd.ckpts.MultiTransform, before'
          f' {_WHO}), or set other_base="warn".'
      )
    logging.warning('%s', text)


def load_lora(
    path: os.PathLike[str] | str,
    *,
    model: nn.LoRA,
    params: Mapping[str, Any],
    **kwargs: Any,
) -> dict[str, Any]:
  """Returns parameters with LoRA leaves from a file: for sampling, by hand.

  ```python
  base = gm.ckpts.load_params(gm.ckpts.CheckpointPath.GEMMA4_E2B_IT)
  params = g4.ckpts.load_lora('my_lora', model=model, params=base)
  sampler = gm.text.ChatSampler(model=model, params=params)
  ```

  Args:
    path: See `g4.ckpts.LoadLoRA`.
    model: A `g4.nn.LoRA` with the settings of the file.
    params: The base, nested. LoRA leaves among them are replaced.
    **kwargs: Other arguments of `g4.ckpts.LoadLoRA`: `step`, `missing`, ...

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: It does not fit; says in what, with both sides.
  """
  return LoadLoRA(path=path, model=model, **kwargs).load(params)


def _unfit(
    found: _lora_sources.Found, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
  """Yields leaves that have another shape or are not numbers."""
  for name, leaf in found.leaves.items():
    shape = shapes.get(name)
    if shape is not None and tuple(leaf.shape) != tuple(shape):
      yield (
          f'{name}: model {tuple(shape)}, file {tuple(leaf.shape)}. Is rank='
          ' another, or the model?'
      )
  problem = _pending.problem(
      {
          tuple(name.split('.')): np.asarray(x)
          for name, x in found.leaves.items()
      }
  )
  if problem:
    yield problem


def _other_settings(
    found: _lora_sources.Found, model: nn.LoRA | None
) -> Iterator[str]:
  """Yields settings and scales that differ in the model."""
  if model is None:
    return
  for name, value in variants.arguments(model.variant).items():
    if found.settings.get(name, value) != value:
      yield f'{name}=: model {value}, file {found.settings[name]}.'
  if found.scales is None:
    return
  ours = _lora_sources.scales_of(model)
  names = [
      k
      for k, scale in ours.items()
      if k in found.scales and not np.isclose(scale, found.scales[k], rtol=1e-6)
  ]
  if names:
    first = names[0]
    yield (
        f'Scale of {_some(names)}: model {ours[first]:g}, file'
        f' {found.scales[first]:g}. Set alpha= (or use_rslora=) of g4.nn.LoRA to'
        ' what was trained.'
    )


def _some(names: Sequence[str]) -> str:
  more = len(names) - _SHOWN
  shown = ', '.join(names[:_SHOWN])
  return f'{shown} and {more} more' if more > 0 else shown


def _split(name: str) -> _trees.Path:
  return tuple(name.split('.'))
