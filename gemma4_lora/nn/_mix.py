"""Several LoRAs on one base: switched and mixed by weights alone."""

from collections.abc import Mapping
from collections.abc import Sequence
import dataclasses
import difflib
import functools
import math
from typing import Any

import flax
from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.gemma4 import _linears
from gemma4_lora.nn import _lora
from gemma4_lora.nn import _mix_methods
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
    by_name = self._checked(
        {weights: 1.0} if isinstance(weights, str) else weights
    )
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

  def merged(
      self,
      weights: Mapping[str, float],
      *,
      method: _mix_methods.Method = 'cat',
      density: float | None = None,
      majority_sign: _mix_methods.MajoritySign = 'total',
      rank: int | None = None,
      seed: int = 0,
  ) -> tuple[_lora.LoRA, dict[str, Any]]:
    """Returns one LoRA made of several, to train on, save or serve.

    ```python
    model, lora = mix.merged({'fr': 0.7, 'de': 0.3}, method='ties', density=0.5)
    g4.hf.save_peft('both', model=model, params=lora)
    ```

    The methods and their numbers are those of PEFT's `add_weighted_adapter`; where
    chance decides (`dare_…`), by `seed`, not by PyTorch's. Computed on the host.

    Args:
      weights: Weights by name; those left out take no part.
      method: PEFT's `combination_type`: `cat` (exactly the weighted sum), `svd`,
        `linear`, `ties`, `dare_linear`, `dare_ties`, `magnitude_prune`, and with
        `_svd` behind the last four.
      density: The share of entries that `ties`, `dare_…` and `magnitude_prune`
        keep, above 0 and up to 1.
      majority_sign: What `ties` finds the sign of most by: the sum of the entries
        (`total`), or of their signs (`frequency`).
      rank: The rank of the result, for methods that end with `svd`; default: the
        largest of the LoRAs'.
      seed: For `dare_…`.

    Returns:
      A `g4.nn.LoRA`, and its LoRA leaves, nested, float32.

    Raises:
      ValueError: An unknown name or argument; no weights; or ranks that differ,
        which only `cat` and `svd` take.
    """
    weights = self._checked(weights)
    _mix_methods.check(
        method, density=density, majority_sign=majority_sign, rank=rank
    )
    if not weights:
      raise ValueError(
          f'LoRAMix.merged takes a weight or more. It has {list(self.names)}.'
      )
    rng = np.random.default_rng(seed)
    config = self.model.config
    rows = {row.name: row for row in _linears.linears(config)}
    ranks, leaves = {}, {}
    for name, stack in self._stacks.items():
      parts = _parts(stack, [weights.get(x) for x in self.names])
      if not parts:
        continue
      if not (method == 'cat' or _mix_methods.has_rank(method)):
        _check_ranks(name, parts, method)
      a, b = _merged(
          parts,
          rows[name],
          method=method,
          density=1.0 if density is None else density,
          majority_sign=majority_sign,
          rank=rank,
          rng=rng,
      )
      ranks[name] = a.shape[-1], float(a.shape[-1])
      leaves[f'{self._paths[name]}.a'] = a.reshape(
          *stack.a.shape[:-1], a.shape[-1]
      )
      leaves[f'{self._paths[name]}.b'] = b.reshape(
          *stack.b.shape[: stack.axis],
          a.shape[-1],
          *stack.b.shape[stack.axis + 1 :],
      )
    most, alpha, rules = _by_row.rules(ranks, list(rows.values()))
    model = _lora.LoRA(
        rank=most,
        alpha=alpha,
        targets=rules,
        quantize=self.model.quantize,
        model=self.model.model,
    )
    return model, flax.traverse_util.unflatten_dict(leaves, sep='.')

  def _checked(self, weights: Mapping[str, float]) -> dict[str, float]:
    """Returns weights by name.

    Raises:
      ValueError: An unknown name, or a weight that is not a number.
    """
    for name, weight in weights.items():
      if name not in self.names:
        close = difflib.get_close_matches(name, self.names)
        hint = f' Did you mean {close[0]!r}?' if close else ''
        raise ValueError(
            f'LoRAMix has no LoRA {name!r}: it has {list(self.names)}.{hint}'
        )
      if not math.isfinite(weight):
        raise ValueError(f'LoRAMix: the weight of {name!r} is {weight}.')
    return dict(weights)


def _check_ranks(
    name: str, parts: Sequence[_mix_methods.Part], method: str
) -> None:
  ranks = {part.a.shape[-1] for part in parts}
  if len(ranks) > 1:
    raise ValueError(
        f'LoRAMix.merged: {name} has ranks {sorted(ranks)}, and'
        f" method={method!r} adds A to A and B to B. Take method='cat', 'svd', or"
        ' one that ends with _svd.'
    )


def _parts(
    stack: _Stack, weights: Sequence[float | None]
) -> list[_mix_methods.Part]:
  """Returns A and B of each LoRA that has a weight, as matrices."""
  a = np.asarray(stack.a, np.float32)
  b = np.asarray(stack.b, np.float32)
  batch = a.shape[: stack.axis]
  a = a.reshape(*batch, -1, a.shape[-1])
  b = b.reshape(*batch, b.shape[stack.axis], -1)
  owners = np.asarray(stack.owners)
  parts = []
  for owner, weight in enumerate(weights):
    (own,) = np.nonzero(owners == owner)
    if weight is not None and own.size:
      parts.append(
          _mix_methods.Part(
              a=a[..., own],
              b=b[..., own, :],
              scale=stack.scales[own[0]],
              weight=weight,
          )
      )
  return parts


def _merged(
    parts: Sequence[_mix_methods.Part], row: _linears.Linear, **kwargs: Any
) -> tuple[np.ndarray, np.ndarray]:
  """Mixes one matrix, or those of each layer that a weight of gemma's stacks."""
  if not row.stacked:
    return _mix_methods.mixed(parts, **kwargs)
  layers = [
      _mix_methods.mixed(
          [dataclasses.replace(x, a=x.a[i], b=x.b[i]) for x in parts], **kwargs
      )
      for i in range(parts[0].a.shape[0])
  ]
  a, b = zip(*layers, strict=True)
  return np.stack(a), np.stack(b)


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
