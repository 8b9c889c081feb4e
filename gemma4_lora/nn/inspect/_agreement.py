"""Checks that fused weights compute the same as LoRA, except for rounding."""

from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import _trees
from gemma4_lora.nn import _fuse
from gemma4_lora.nn import _lora
from gemma4_lora.nn.branches import _quantized_base
from gemma4_lora.nn.inspect import _report
from gemma4_lora.nn.wrapper import _router_fix
from gemma4_lora.quant import _arrays

_NUM_TOKENS = 16
# How much fusing may change the logits by rounding, relative to their size.
_TOLERANCE = {'float32': 1e-3, 'float64': 1e-3}
_TOLERANCE_ROUNDED = 0.02
# Factor over the effect of the weights' last bit: activations are rounded, too.
_ROUNDING = 4
# The share of a weight's change that may be missing once it is fused.
_MISSING = 0.25
# How much a sum in float32 may differ in another order, relative to a weight.
_SUM_ERROR = 1e-6


def logits(
    model: _lora.LoRA,
    base: Mapping[str, Any],
    params: Mapping[str, Any],
    tokens: Any,
    fused: Mapping[str, Any] | None,
) -> dict[str, float]:
  """Returns how far logits are apart, relative to their size.

  Args:
    model: A `g4.nn.LoRA`.
    base: The base.
    params: The base and LoRA.
    tokens: `[batch, length]`; None for a few random ones.
    fused: Weights that should compute the same; None for `g4.nn.fuse_params`.
  """
  if tokens is None:
    rng = np.random.default_rng(0)
    vocab = model.model.config.num_embed
    tokens = rng.integers(3, vocab, (1, _NUM_TOKENS), np.int32)
  tokens = jnp.asarray(tokens)
  plain = model.model
  if plain.config.enable_moe:
    plain = _router_fix.RouterFix(model=plain)

  def run(m, p):
    return np.asarray(m.apply({'params': p}, tokens).logits, np.float32)

  adapted = run(model, params)
  if model.quantize:  # The plain model cannot read it.
    original = run(model.clone(enabled=False), params)
  else:
    original = run(plain, base)
  if fused is None:
    fused = _fuse.fuse_params(model, params)
  # What is quantised still is named elsewhere.
  fused = _quantized_base.dequantized(fused, model.model.dtype)
  merged = run(plain, fused)
  size = float(np.sqrt(np.mean(np.square(adapted)))) or 1.0

  def apart(x, y):
    return float(np.sqrt(np.mean(np.square(x - y)))) / size

  same = original.argmax(-1) == adapted.argmax(-1)
  found = {
      'base_vs_adapter': apart(original, adapted),
      'adapter_vs_fused': apart(adapted, merged),
      'base_vs_fused': apart(original, merged),
      'changed_predictions': float(np.mean(~same)),
  }
  if found['adapter_vs_fused'] > _tolerance(model, found):
    # One more forward pass, to see if the difference is rounding.
    nudged = run(plain, _nudged(model, base, params, fused))
    found['rounding'] = apart(merged, nudged)
  return found


def different(model: _lora.LoRA, found: Mapping[str, float]) -> Iterator[str]:
  """Yields problems of the logits."""
  effect, error = found['base_vs_adapter'], found['adapter_vs_fused']
  if not np.isfinite(effect):
    yield 'The logits are NaN or infinite: the base, or LoRA, is broken.'
    return
  if effect == 0:
    yield (
        'The logits with and without LoRA are the same: it does not change the'
        ' model.'
    )
  dtype = _dtype(model)
  tolerance = _tolerance(model, found)
  if not error <= tolerance or (error > effect > 0 and dtype in _TOLERANCE):
    yield (
        f'Fused weights give other logits than LoRA: {error:.2g} of their size'
        f' apart, {tolerance:.2g} is allowed. They are of another run, another'
        ' step, or without scale.'
    )
  elif dtype not in _TOLERANCE and error > effect > 0:
    yield (
        f'In {dtype}, rounding ({error:.2g}) is larger than what LoRA changes'
        f' ({effect:.2g}): fused, it would be lost. Serve it unfused, or train'
        ' longer.'
    )


def rounded(model: _lora.LoRA, found: Mapping[str, float]) -> Iterator[str]:
  """Yields a note if rounding is large against the logits."""
  if found['adapter_vs_fused'] <= _tolerance(model, found) and (
      'rounding' in found
  ):
    yield (
        'Fusing LoRA changes the logits by'
        f' {found["adapter_vs_fused"]:.1%} of their size, which is no fault:'
        f' rounding the adapted weights to {_dtype(model)} alone changes them by'
        f' {found["rounding"]:.1%}.'
    )


def not_fused(
    model: _lora.LoRA,
    base: Mapping[str, Any],
    lora: Mapping[str, Any],
    fused: Mapping[str, Any],
) -> Iterator[str]:
  """Yields problems of fused weights, compared one by one.

  The logits alone do not show it: a dropped branch may change them less than
  rounding does.

  Args:
    model: A `g4.nn.LoRA`.
    base: The base.
    lora: The LoRA leaves.
    fused: What should be their sum.
  """
  wrong = []
  for path, change in _fuse.changes_of(model, base, lora).items():
    leaf, got = _trees.get(base, path), _trees.get(fused, path)
    if _arrays.is_quantized(got):
      wrong.append(f'{path} is quantised still')
      continue
    want = change.fused(leaf, model.model.dtype)
    old = _arrays.dense(leaf, want.dtype).astype(jnp.float32)
    dtype, want = want.dtype, want.astype(jnp.float32)
    there = jnp.asarray(got, jnp.float32)
    if there.shape != want.shape:
      wrong.append(f'{path} has shape {there.shape}, not {want.shape}')
      continue
    error = float(jnp.linalg.norm(there - want))
    added = float(jnp.linalg.norm(want - old))
    # The same sum, rounded to the same dtype, differs by float32's own error.
    eps = _SUM_ERROR if got.dtype == dtype else _eps(dtype, got.dtype)
    size = float(jnp.linalg.norm(want))
    if error <= _MISSING * added + eps * size:
      continue
    if added:
      wrong.append(f'{path} (by {error / added:.0%} of what LoRA changes)')
    else:
      wrong.append(f'{path} (by {error / size:.2%} of the weight)')
  if wrong:
    yield (
        f'{len(wrong)} fused weights are not the sum of'
        f'{" dequantised" * bool(model.quantize)} base and LoRA:'
        f' {_report.some(wrong)}. Fuse them again, with g4.nn.fuse_params or'
        ' gemma4_lora fuse.'
    )


def dequantized(model: _lora.LoRA, base: Mapping[str, Any]) -> Iterator[str]:
  """Yields what fusing changes of a quantised base."""
  nodes = dict(_quantized_base.quantized_nodes(base))
  if not nodes:
    return
  kinds = sorted({_arrays.encoding_of(x).kind for x in nodes.values()})
  few = sum(map(_arrays.nbytes, nodes.values()))
  many = sum(
      _arrays.nbytes(_arrays.dense(jax.tree.map(_shape, x), model.model.dtype))
      for x in nodes.values()
  )
  yield (
      f'The base is quantised ({", ".join(kinds)}), and LoRA was trained on what'
      f' it stands for. Fused, {len(nodes)} leaves are {_dtype(model)}:'
      f' {many / 1e6:,.1f} MB, where they are {few / 1e6:,.1f} MB. Quantised'
      ' again, they would lose a part of LoRA.'
  )


def _shape(x: Any) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _dtype(model: _lora.LoRA) -> str:
  return str(jnp.dtype(model.model.dtype))


def _eps(*dtypes: Any) -> float:
  """Returns that of the coarsest dtype."""
  return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _tolerance(model: _lora.LoRA, found: Mapping[str, float]) -> float:
  """How far logits of fused weights may be from LoRA's."""
  least = _TOLERANCE.get(_dtype(model), _TOLERANCE_ROUNDED)
  return max(least, _ROUNDING * found.get('rounding', 0.0))


def _nudged(
    model: _lora.LoRA,
    base: Mapping[str, Any],
    params: Mapping[str, Any],
    fused: Mapping[str, Any],
) -> dict[str, Any]:
  """Returns fused weights with the last bit changed where LoRA changed them."""
  new: dict[str, Any] = jax.tree.map(lambda x: x, dict(fused))
  half = float(jnp.finfo(model.model.dtype).eps) / 2
  paths = _fuse.changes_of(model, base, params)
  for i, path in enumerate(paths):
    leaf = jnp.asarray(_trees.get(fused, path))
    sign = jax.random.rademacher(jax.random.key(i), leaf.shape, jnp.float32)
    _trees.put(new, path, (leaf * (1 + half * sign)).astype(leaf.dtype))
  return new
