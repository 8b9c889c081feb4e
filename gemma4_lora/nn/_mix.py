"""Several LoRAs on one base: switched and mixed by weights alone."""

from collections.abc import Mapping
import dataclasses
import difflib
import functools
import math
from typing import Any

import flax
from gemma import peft
import jax
import jax.numpy as jnp

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _linears
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _init
from gemma4_lora.nn.branches import _pending
from gemma4_lora.targets import _by_row


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stack:
  """The branches of one projection, concatenated along the rank.

  Attributes:
    a: `[*batch, *in, ranks]`.
    b: `[*batch, ranks, *out]`.
    axis: The axis of ranks in `b`.
    owners: Per rank, the number of its LoRA.
    scales: Per rank, what its LoRA multiplies A times B by.
  """

  a: jax.Array
  b: jax.Array
  axis: int
  owners: tuple[int, ...]
  scales: tuple[float, ...]


class LoRAMix:
  """Several named LoRAs of one base model.

  ```python
  mix = g4.nn.LoRAMix({'fr': (model_fr, params_fr), 'de': (model_de, params_de)})
  sampler = gm.text.ChatSampler(
      model=mix.model, params=mix.params(base, 'fr')
  )
  params = mix.params(base, {'fr': 0.7, 'de': 0.3})
  ```

  The branches of one projection are concatenated along the rank, and the
  weights are multiplied into B: A times B is exactly the weighted sum of the
  branches. The shapes do not depend on the weights, so that a switch compiles
  nothing anew. The base is not touched.

  Attributes:
    model: A `g4.nn.LoRA` that fits all of them.
    names: The LoRAs' names.
  """

  model: _lora.LoRA
  names: tuple[str, ...]

  def __init__(self, loras: Mapping[str, tuple[_lora.LoRA, Mapping[str, Any]]]):
    """Stacks them.

    Args:
      loras: Model and parameters by name. Only the LoRA leaves are read, as
        `g4.hf.load_peft` and `g4.ckpts.load_lora` return them.

    Raises:
      ValueError: No LoRA is given; base models or their quantisation differ; or
        one is not a sum of branches: a variant that adds more than A times B,
        `modules_to_save`, PiSSA or OLoRA; or one has NaN or infinite values, or
        no values yet.
    """
    if not loras:
      raise ValueError('g4.nn.LoRAMix takes one LoRA or more, by name.')
    first, *_ = (model for model, _ in loras.values())
    for name, (model, params) in loras.items():
      _check(name, model, first)
      _check_values(name, model, params)
    self.names = tuple(loras)
    views = [_views_of(model, params) for model, params in loras.values()]
    rows = _linears.linears(first.model.config)
    self._stacks = {
        row.name: _stack(row, [v.get(row.name) for v in views])
        for row in rows
        if any(row.name in v for v in views)
    }
    self._paths = {row.name: row.lora_path for row in rows}
    ranks = {n: len(stack.owners) for n, stack in self._stacks.items()}
    rank, alpha, rules = _by_row.rules(
        {name: (rank, float(rank)) for name, rank in ranks.items()}, rows
    )
    self.model = _lora.LoRA(
        rank=rank,
        alpha=alpha,
        targets=rules,
        quantize=first.quantize,
        model=first.model,
    )

  def params(
      self, base: Mapping[str, Any], weights: str | Mapping[str, float]
  ) -> dict[str, Any]:
    """Returns parameters of `model`: a base, and a weighted sum of the LoRAs.

    Args:
      base: Nested. LoRA leaves among them are replaced.
      weights: A name, or weights by name; those left out weigh nothing.

    Raises:
      ValueError: An unknown name, or a weight that is not a number.
    """
    by_name = {weights: 1.0} if isinstance(weights, str) else dict(weights)
    for name, weight in by_name.items():
      if name not in self.names:
        close = difflib.get_close_matches(name, self.names)
        hint = f' Did you mean {close[0]!r}?' if close else ''
        raise ValueError(
            f'LoRAMix has no LoRA {name!r}: it has {list(self.names)}.{hint}'
        )
      if not math.isfinite(weight):
        raise ValueError(f'LoRAMix: the weight of {name!r} is {weight}.')
    values = [by_name.get(name, 0.0) for name in self.names]
    leaves = {}
    for name, stack in self._stacks.items():
      factors = [
          values[owner] * scale
          for owner, scale in zip(stack.owners, stack.scales, strict=True)
      ]
      path = self._paths[name]
      leaves[f'{path}.a'] = stack.a
      leaves[f'{path}.b'] = _scaled(
          stack.b, jnp.asarray(factors, jnp.float32), axis=stack.axis
      )
    original, _ = peft.split_params(dict(base))
    lora = flax.traverse_util.unflatten_dict(leaves, sep='.')
    return peft.merge_params(original, lora)


@functools.partial(jax.jit, static_argnames='axis')
def _scaled(b: jax.Array, factors: jax.Array, *, axis: int) -> jax.Array:
  behind = b.ndim - axis - 1
  return b * factors.reshape(-1, *(1,) * behind)


def _views_of(
    model: _lora.LoRA, params: Mapping[str, Any]
) -> dict[str, tuple[jax.Array, jax.Array, float]]:
  """Returns A, B and scale by name of the projection."""
  views = {}
  for linear in model.adapted:
    leaves = _trees.get(params, linear.row.lora_path)
    scale = linear.scale(use_rslora=model.use_rslora)
    views[linear.row.name] = leaves['a'], leaves['b'], scale
  return views


def _stack(row: _linears.Linear, views: list[Any]) -> _Stack:
  """Concatenates the branches of one projection along the rank."""
  there = [(i, *view) for i, view in enumerate(views) if view is not None]
  axis = len(row.batch_axes)
  ranks = [a.shape[-1] for _, a, _, _ in there]

  def per_rank(values):
    return tuple(
        v for v, rank in zip(values, ranks, strict=True) for _ in range(rank)
    )

  return _Stack(
      a=jnp.concatenate(
          [jnp.asarray(a, jnp.float32) for _, a, _, _ in there], axis=-1
      ),
      b=jnp.concatenate(
          [jnp.asarray(b, jnp.float32) for _, _, b, _ in there], axis=axis
      ),
      axis=axis,
      owners=per_rank([i for i, *_ in there]),
      scales=per_rank([scale for *_, scale in there]),
  )


def _check_values(
    name: str, model: _lora.LoRA, params: Mapping[str, Any]
) -> None:
  """Raises if a LoRA is not trained, or has NaN or infinite values."""
  leaves: dict[_trees.Path, Any] = {}
  for linear in model.adapted:
    path = linear.row.lora_path
    for key, leaf in _trees.get(params, path).items():
      leaves[path, key] = leaf
  if text := _pending.problem(leaves):
    raise ValueError(f'g4.nn.LoRAMix: {name!r}: {text}')


def _check(name: str, model: Any, first: Any) -> None:
  """Raises if a LoRA is not a sum of branches on the first one's base."""
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        f'g4.nn.LoRAMix: {name!r} takes a pair of a g4.nn.LoRA and its'
        f' parameters. Got: {type(model).__name__}'
    )
  if model.model.config != first.model.config:
    raise ValueError(
        f'g4.nn.LoRAMix: {name!r} has another base model than the first one:'
        f' {type(model.model).__name__} and {type(first.model).__name__}, or'
        ' their configs differ.'
    )
  if model.quantized != first.quantized:
    raise ValueError(
        f'g4.nn.LoRAMix: {name!r} has quantize={model.quantize}, and the first'
        f' one quantize={first.quantize}: they have no base in common. To put'
        ' them on one nonetheless, give both the same:'
        ' model.clone(quantize=...).'
    )
  init = model.init_lora_weights
  for setting, has in (
      (model.variant.setting, not model.variant.is_branch_alone),
      ('modules_to_save=', bool(model.modules_to_save)),
      (f'init_lora_weights={init!r}', _init.is_from_base(init)),
  ):
    if has:
      raise ValueError(
          f'g4.nn.LoRAMix: {name!r} has {setting}, so it is not a sum of'
          ' branches on the shared base. Fuse it: g4.nn.fuse_params.'
      )
