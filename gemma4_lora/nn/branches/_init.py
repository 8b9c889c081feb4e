"""How A and B start.

| `init_lora_weights=` | A | B | step 0 |
|---|---|---|---|
| `'default'` | `U(-1, 1) / sqrt(fan_in)` | 0 | the base |
| `'gaussian'` | `N(0, 1) / rank` | 0 | the base |
| `'orthogonal'` | `N(0, 1) Q / 10`, with every other row of an orthogonal `Q` | `Q' N(0, 1) / 10`, with the other rows | the base: `A B = 0` |
| `'pissa'`, `'pissa_niter_16'` | from the base's largest singular values | | the base, less `s A B` in its weight |
| `'olora'` | from the base's QR decomposition | | the same |
| `'loftq'`, `'loftq_niter_16'` | from the largest singular values of what quantising the base lost | | nearest to the unquantised base |

All are PEFT's of the same name (`'default'` is its `True`). PiSSA and OLoRA
read the base, and LoftQ the base before quantisation. The base is restored
after `model.init`; until then their A and B have no values, see `_pending`.
"""

import re

import jax
import jax.numpy as jnp

FROM_BASE = re.compile(r'pissa|pissa_niter_[1-9]\d*|olora')
_LOFTQ = re.compile(r'loftq|loftq_niter_[1-9]\d*')
_NAMES = (
    'default',
    'gaussian',
    'orthogonal',
    'pissa',
    'pissa_niter_16',
    'olora',
    'loftq',
    'loftq_niter_16',
)


def check(init: str) -> None:
  """Raises ValueError for an unknown initialisation."""
  if not isinstance(init, str) or init not in _NAMES and not waits(init):
    raise ValueError(
        f'init_lora_weights= takes one of {", ".join(map(repr, _NAMES))} (any number of'
        f' iterations). Got: {init!r}'
    )


def is_from_base(init: str) -> bool:
  """Whether A and B come from the base weight, which is changed."""
  return FROM_BASE.fullmatch(init) is not None


def is_loftq(init: str) -> bool:
  """Whether A and B make up for what quantising the base lost."""
  return _LOFTQ.fullmatch(init) is not None


def waits(init: str) -> bool:
  """Whether A and B have no values until the base is restored."""
  return is_from_base(init) or is_loftq(init)


def num_iters(init: str) -> int | None:
  """Iterations of a randomised SVD: 16 of `'pissa_niter_16'`; None: exact."""
  _, _, number = init.partition('_niter_')
  return int(number) if number else None


def draw(
    key: jax.Array,
    init: str,
    *,
    fan_in: int,
    fan_out: int,
    rank: int,
) -> tuple[jax.Array, jax.Array]:
  """Returns A `float32[in, rank]` and B `float32[rank, out]`.

  Args:
    key: Random key for A and B.
    init: Any except `'default'`, for which A and B are drawn separately, and
      those that wait for the base.
    fan_in: Size of the whole input side.
    fan_out: Size of the whole output side.
    rank: Rank of A and B. `'orthogonal'` takes an even one.
  """
  if init == 'gaussian':
    a = jax.random.normal(key, (fan_in, rank)) / rank
    return a, jnp.zeros((rank, fan_out))
  assert init == 'orthogonal', init
  key_q, key_a, key_b = jax.random.split(key, 3)
  q = jax.random.orthogonal(key_q, rank)
  a = jax.random.normal(key_a, (fan_in, rank // 2)) @ q[0::2]
  b = q[1::2].T @ jax.random.normal(key_b, (rank // 2, fan_out))
  return a / 10, b / 10
