"""The product of two matrices of low rank that is nearest to a matrix."""

import functools

import jax
import jax.numpy as jnp

# Directions beyond the rank that a randomised SVD looks at: a few are enough
# (Halko et al., https://arxiv.org/abs/0909.4061).
_OVERSAMPLING = 8


def fit(
    matrix: jax.Array,
    rank: int,
    key: jax.Array,
    *,
    num_iters: int | None,
    scale: float,
) -> tuple[jax.Array, jax.Array]:
  """Returns A `[in, rank]` and B `[rank, out]`: `scale * A @ B` is nearest.

  Args:
    matrix: f32 `[in, out]`
    rank: Rank of A and B.
    key: Random key of a randomised SVD.
    num_iters: Iterations of a randomised SVD; None for an exact one.
    scale: What A times B is multiplied by.
  """
  if num_iters is None:
    u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
  else:
    u, s, vh = _randomised_svd(matrix, rank, key, num_iters=num_iters)
  root = jnp.sqrt(s[:rank] / scale)
  return u[:, :rank] * root[None, :], root[:, None] * vh[:rank]


def _randomised_svd(
    matrix: jax.Array, rank: int, key: jax.Array, *, num_iters: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The largest singular values, by subspace iteration."""
  product = functools.partial(jnp.matmul, precision='highest')
  width = min(rank + _OVERSAMPLING, *matrix.shape)
  start = jax.random.normal(key, (matrix.shape[1], width))
  q, _ = jnp.linalg.qr(product(matrix, start))

  def step(_, q):
    p, _ = jnp.linalg.qr(product(matrix.T, q))
    return jnp.linalg.qr(product(matrix, p))[0]

  q = jax.lax.fori_loop(0, num_iters, step, q)
  u, s, vh = jnp.linalg.svd(product(q.T, matrix), full_matrices=False)
  return product(q, u), s, vh
