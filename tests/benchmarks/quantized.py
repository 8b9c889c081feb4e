"""What a quantised base costs: error of the logits, and time of a step.

```sh
uv run --extra dev python -m tests.benchmarks.quantized
```

* Error: root mean square of the logits' difference from those of the base as it
  is, over that of the logits; all in float32. All linears, experts and tables
  are quantised, in groups of 32, or of the largest power of two that divides each
  input. `bfloat16` rounds the same weights to that. The tiny models of
  `tests/testdata/hf` have weights that make them ill-conditioned: what each of
  them makes of relative noise of 0.1 % in its weights stands beside. `CPU` is
  `sizes.CPU` with weights of the size that `model.init` gives.
* Step: `sizes.CPU` in bfloat16, LoRA of its rank on all text linears, Adam. The
  models take steps in turns, in one process; the ratio is the median over rounds.
"""

import argparse
from collections.abc import Sequence
import dataclasses
import statistics
import time

from gemma import peft
import jax
import jax.numpy as jnp
import numpy as np

from gemma4_lora import g4
from gemma4_lora.nn.branches import _quantized_base
from tests.benchmarks import sizes
from tests.benchmarks import steps
from tests.lib import hf_reference

FIXTURES = ('dense', 'e', 'moe')
FORMATS = ('int8', 'int4', 'nf4')
PARTS = ('error', 'step')
_GROUP = 32
_NOISE = 1e-3


def errors(
    fixture: str, *, formats: Sequence[str] = FORMATS
) -> dict[str, float]:
  """Returns the relative error of the logits, by what is done to weights.

  Args:
    fixture: One of `FIXTURES`, or `'CPU'` or `'TINY'` of `sizes`.
    formats: Of the base; noise and `bfloat16` come on top.
  """
  if fixture in FIXTURES:
    reference = hf_reference.load(fixture)
    base, params = reference.model, reference.params
    tokens = reference.tokens
  else:
    size = getattr(sizes, fixture)
    base, params = size.model(), None
    tokens = steps.batches(size)['input']
  # LoRA is off: it is the base that is looked at.
  model = g4.nn.LoRA(rank=1, targets='q', model=base, enabled=False)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  drawn = _drawn(shapes)
  if params is None:
    params = drawn
  params = peft.merge_params(
      peft.split_params(params).original, peft.split_params(drawn).lora
  )

  def logits(apply, params):
    return np.asarray(apply({'params': params}, tokens).logits, np.float64)

  plain = jax.jit(model.apply)  # One program for three sets of weights.
  want = logits(plain, params)

  def error(apply, params):
    squares = np.mean(np.square(logits(apply, params) - want))
    return float(np.sqrt(squares / np.mean(np.square(want))))

  found = {
      'noise': error(plain, _weights(params, _noisy)),
      'bfloat16': error(plain, _weights(params, _rounded)),
  }
  for name in formats:
    quantized = model.clone(quantize=_fitting(model, name))
    codes = _quantized_base.quantize(params, quantized.quantized)
    found[name] = error(jax.jit(quantized.apply), codes)
  return found


def _drawn(shapes):
  """Weights of the size that `model.init` gives; scales of norms are 1."""
  rng = np.random.default_rng(0)

  def one(keys, x):
    if len(x.shape) < 2:
      return jnp.ones(x.shape, x.dtype)
    is_table = 'embed' in keys[-1].key
    width = 1 if is_table else np.prod(x.shape[:-1])
    value = rng.standard_normal(x.shape, np.float32) * width**-0.5
    return jnp.asarray(value, x.dtype)

  return jax.tree_util.tree_map_with_path(one, shapes)


def _weights(params, change):
  """Returns parameters with all but scales of norms changed."""
  return jax.tree.map(lambda x: change(x) if x.ndim > 1 else x, params)


def _rounded(x):
  return x.astype(jnp.bfloat16).astype(x.dtype)


def _noisy(x):
  rng = np.random.default_rng(x.size)
  return x * (1 + _NOISE * rng.standard_normal(x.shape, np.float32))


def _fitting(model, name: str):
  """Returns a format whose groups divide all inputs."""
  if name == 'int8':
    return g4.quant.Int8()
  cls = {'int4': g4.quant.Int4, 'nf4': g4.quant.NF4}[name]
  size = _GROUP
  while size > 1:
    try:
      return model.clone(quantize=cls(group_size=size)).quantize
    except ValueError:
      size //= 2
  raise ValueError(f'{name}: no groups divide all inputs.')


def seconds(
    size: sizes.Size, *, rounds: int, formats: Sequence[str] = FORMATS
) -> dict[str, list[float]]:
  """Returns times of a step, by format; `bfloat16` is the base as it is."""
  size = dataclasses.replace(size, dtype='bfloat16')
  batch = steps.batches(size)
  run, states = {}, {}
  for name in ('bfloat16', *formats):
    quantize = None if name == 'bfloat16' else name
    step = steps.make('ours', size, quantize=quantize)
    model = g4.nn.LoRA(rank=size.rank, model=size.model(), quantize=quantize)
    plain = jax.eval_shape(
        model.clone(quantize=None).init, jax.random.key(0), batch['input']
    )['params']
    params = _quantized_base.quantize(steps.fill(plain), model.quantized)
    (states[name],) = step.split(params)
    run[name] = step.lowered().compile()

  def once(name):
    start = time.perf_counter()
    states[name], aux = run[name](states[name], batch)
    jax.block_until_ready(aux)
    return time.perf_counter() - start

  for name in run:
    once(name)
  found = {name: [] for name in run}
  for i in range(rounds):
    names = list(run)
    for name in names[i % len(names) :] + names[: i % len(names)]:
      found[name].append(once(name))
  return found


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--only', nargs='+', choices=PARTS, default=PARTS)
  parser.add_argument(
      '--tiny', action='store_true', help='to see whether it runs'
  )
  args = parser.parse_args()
  if 'error' in args.only:
    columns = ('noise', 'bfloat16', *FORMATS)
    print(f'| error of the logits | {" | ".join(columns)} |')
    print('|---' * (len(columns) + 1) + '|')
    for fixture in (*FIXTURES, 'TINY' if args.tiny else 'CPU'):
      found = errors(fixture)
      cells = ' | '.join(f'{found[x]:.1%}' for x in columns)
      print(f'| {fixture} | {cells} |', flush=True)
  if 'step' in args.only:
    size = sizes.TINY if args.tiny else sizes.CPU
    found = seconds(size, rounds=args.rounds)
    base = found['bfloat16']
    for name, times in found.items():
      ratios = [x / y for x, y in zip(times, base, strict=True)]
      print(
          f'| step, {name} | {statistics.median(times):.3g} s'
          f' | {statistics.median(ratios):.2f} |'
      )


if __name__ == '__main__':
  main()
