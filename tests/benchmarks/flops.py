"""Compiled FLOPs of a LoRA step against the least that it could take.

```sh
uv run --extra dev python -m tests.benchmarks.flops
```

prints, per rule set, for E2B's shapes at batch 1 x 512 tokens, float operations
as XLA counts them in the compiled step (loss and gradients of all LoRA leaves;
the optimizer's are few), over the sum of

* the frozen model forward, and backward through its activations as far down as
  the lowest adapted linear: compiled too, with a trainable bias in the place of
  each branch;
* the products of the branches, by hand: forward, and in the backward pass those
  for A, for B and for the branch's input, `6 tokens rank (in + out)`.

Nothing is allocated: the model is compiled from shapes.
"""

import dataclasses
import math
from typing import Any

from flax import linen as nn
from gemma import gm
from gemma import peft
import jax
import jax.numpy as jnp
import optax

from gemma4_lora import g4
from gemma4_lora import targets as targets_lib
from gemma4_lora.nn.branches import _injector
from gemma4_lora.nn.branches import _low_rank

_RULES = {
    'text': 'text',
    'attention': 'attention',
    'q, v': ['q', 'v'],
    'mlp': 'mlp',
    'per_layer_inputs': 'per_layer_inputs',
    'attention of layers 20:': targets_lib.attention(layers='20:'),
}

_RANK = 16
_LENGTH = 512  # In tokens.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flops:
  """Float operations of one step.

  Attributes:
    step: The LoRA step, compiled.
    frozen: The frozen model and the backward pass through it, compiled.
    branches: The products of the branches, by hand.
  """

  step: float
  frozen: float
  branches: float

  @property
  def ratio(self) -> float:
    """Of the step, over the least."""
    return self.step / (self.frozen + self.branches)


def measure(
    model: nn.Module,
    targets: Any,
    *,
    rank: int,
    length: int,
    compiles: bool = True,
) -> Flops:
  """Returns the FLOPs of a LoRA step at batch 1.

  Args:
    model: A Gemma 4 model.
    targets: See `g4.nn.LoRA`.
    rank: The branches' rank.
    length: In tokens.
    compiles: Whether to count in the compiled step; or else before XLA has
      optimised it, which takes a fifth of the time.
  """
  lora = g4.nn.LoRA(rank=rank, targets=targets, model=model)
  biases = _Biases(rank=rank, targets=targets, model=model)
  return Flops(
      step=_count(lora, length, compiles),
      frozen=_count(biases, length, compiles),
      branches=sum(
          6
          * length
          * x.rank
          * (math.prod(x.row.in_shape) + math.prod(x.row.out_shape))
          for x in lora.adapted
      ),
  )


class _BiasInjector(_injector.Injector):
  """Adds a bias where LoRA has a branch."""

  @property
  def key(self) -> str:
    return f'bias {super().key}'

  def _branch(self, module, linear, eqn, x, output):
    row = linear.row.one_layer
    scope = _injector._scope(module, row)  # pylint: disable=protected-access
    bias = scope.param('b', nn.initializers.zeros, row.out_shape, x.dtype)
    return jnp.broadcast_to(_low_rank.spread(eqn, row, bias), output.shape)


class _Biases(g4.nn.LoRA):
  """LoRA without the products of its branches."""

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    injector = _BiasInjector(
        adapted=self.adapted,
        use_rslora=False,
        is_training=False,
        dtype=self.dtype,
        root=self.path,
        base_dtype=self.dtype,
    )
    return self._call_intercepted(
        *args, interceptors={injector.key: injector}, **kwargs
    )


def _count(model: nn.Module, length: int, compiles: bool) -> float:
  """Returns the FLOPs of loss and gradients of the leaves under `lora`."""
  tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  base, lora = peft.split_params(params)

  def loss(lora, base, tokens):
    params = peft.merge_params(base, lora)
    logits = model.apply({'params': params}, tokens).logits
    return jnp.mean(
        optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), tokens
        )
    )

  step = jax.jit(jax.value_and_grad(loss)).lower(lora, base, tokens)
  cost: Any = (step.compile() if compiles else step).cost_analysis()
  return cost['flops']


def main() -> None:
  print(f'{"rules":26}{"step":>9}{"frozen":>9}{"branches":>10}{"ratio":>8}')
  for name, targets in _RULES.items():
    flops = measure(
        gm.nn.Gemma4_E2B(text_only=True),
        targets,
        rank=_RANK,
        length=_LENGTH,
    )
    print(
        f'{name:26}{flops.step / 1e9:>8.1f}G{flops.frozen / 1e9:>8.1f}G'
        f'{flops.branches / 1e9:>9.1f}G{flops.ratio:>8.3f}',
        flush=True,
    )


if __name__ == '__main__':
  main()
