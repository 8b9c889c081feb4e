"""Attention by JAX's kernel for TPUs, which keeps scores on the chip.

https://github.com/jax-ml/jax/tree/main/jax/experimental/pallas/ops/tpu/splash_attention

The kernel counts a window in indices of the row, gemma in positions. The two
differ if a conversation has padding between its tokens. `_blockwise` computes
such batches, and all calls that do not run on a TPU.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from absl import logging
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from kauldron import kd

from gemma4_lora.host import _placement
from gemma4_lora.nn.attention import _blockwise

# Blocks are multiples of the lanes of a TPU's registers.
_LANES = 128
_DTYPES = (jnp.bfloat16, jnp.float32)
_NOT_DIVIDED = (
    "g4.nn.LoRA(attention='splash'): the compiler cannot divide a kernel among"
    " devices, and %d rows are not divided here. It is attention='blockwise', with"
    ' the same numbers. The step of trainstep=g4.train.TrainStep() divides them,'
    ' if they are a multiple of the devices; evaluators do not.'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """What is attended to, and where it is computed.

  Attributes:
    blockwise: What is attended to.
    interpret: Whether the kernel is interpreted, on any device.
  """

  blockwise: _blockwise.Settings
  interpret: bool = False


def key() -> str:
  """Returns a string of what `attend` depends on beside its arguments: devices."""
  placement = _placement.current()
  if placement is None:
    return str(kd.sharding.DEVICES_MESH.size)
  return placement.key


def attend(
    settings: _blockwise.Settings,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    allowed: _blockwise.Allowed,
) -> jax.Array:
  """Returns what `_blockwise.attend` does, except for queries that are padding.

  Args:
    settings: Window, soft-cap, blocks.
    q: `[B, T, N, H]`
    k: `[B, T, K, H]`
    v: `[B, T, K, H]`
    allowed: Who may attend to whom.

  Returns:
    `[B, T, N, H]`
  """
  is_right = allowed.mask is None and q.dtype in _DTYPES
  if not is_right or q.shape[-1] % _LANES:
    return _blockwise.attend(settings, q, k, v, allowed)
  call = functools.partial(_attend, Settings(blockwise=settings))
  placement = _placement.current()
  num_shards = 1 if placement is None else placement.num_shards
  is_on_many = placement is None and kd.sharding.DEVICES_MESH.size > 1
  if is_on_many or q.shape[0] % num_shards:
    logging.log_first_n(logging.WARNING, _NOT_DIVIDED, 1, q.shape[0])
    return _blockwise.attend(settings, q, k, v, allowed)
  if placement is not None:
    spec = jax.sharding.PartitionSpec(placement.batch.spec[0])
    call = jax.shard_map(
        call,
        mesh=placement.batch.mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
  return checkpoint_name(call(q, k, v, allowed), _blockwise.NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(settings, q, k, v, allowed):
  return _either(
      settings, lambda attend, *qkv: attend(*qkv), (q, k, v), allowed
  )


def _with_residuals(settings, q, k, v, allowed):
  return _attend(settings, q, k, v, allowed), (q, k, v, allowed)


def _backward(settings, kept, cotangent):
  # The kernel's own residuals are made once more: JAX has no public call for the
  # backward pass alone.
  def gradients(attend, *args):
    *qkv, cotangent = args
    return jax.vjp(attend, *qkv)[1](cotangent)

  q, k, v, allowed = kept
  return *_either(settings, gradients, (q, k, v, cotangent), allowed), None


_attend.defvjp(_with_residuals, _backward)


def _either(
    settings: Settings,
    call: Callable[..., Any],
    args: tuple[jax.Array, ...],
    allowed: _blockwise.Allowed,
) -> Any:
  """Returns `call(attend, *args)`, with the kernel if it supports them."""

  def by_kernel(*args):
    return call(lambda q, k, v: _by_kernel(settings, q, k, v, allowed), *args)

  def in_blocks(*args):
    return call(
        lambda q, k, v: _blockwise.attend(settings.blockwise, q, k, v, allowed),
        *args,
    )

  def on_tpu(*args):
    if settings.blockwise.window is None:
      return by_kernel(*args)
    return jax.lax.cond(_is_dense(allowed), by_kernel, in_blocks, *args)

  if settings.interpret:
    return on_tpu(*args)
  return jax.lax.platform_dependent(*args, tpu=on_tpu, default=in_blocks)


def _by_kernel(
    settings: Settings,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    allowed: _blockwise.Allowed,
) -> jax.Array:
  """Returns what each query attends to, `[B, T, N, H]`, by the kernel."""
  length = q.shape[1]
  block = min(settings.blockwise.block, length + -length % _LANES)
  missing = -length % block
  window = settings.blockwise.window
  is_empty = _is_empty(allowed, window)
  valid = jnp.pad(_valid(allowed), ((0, 0), (0, missing)))
  segments = allowed.segments
  if segments is None:
    of_queries = jnp.ones(valid.shape, jnp.int32)
  else:
    of_queries = jnp.pad(segments + 1, ((0, 0), (0, missing)), mode='edge')
  of_queries = of_queries.astype(jnp.int32)  # Not if x64 is enabled.
  of_keys = jnp.where(valid, of_queries, 0)
  q, k, v = (
      jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0))).swapaxes(1, 2)
      for x in (q, k, v)
  )
  kernel = _kernel(
      length + missing,
      q.shape[1],
      block,
      window,
      settings.blockwise.soft_cap,
      settings.interpret,
  )
  output = jax.vmap(kernel)(q, k, v, of_queries, of_keys)
  output = output.swapaxes(1, 2)[:, :length]
  return jnp.where(is_empty[..., None, None], 0, output)


@functools.cache
def _kernel(
    length: int,
    num_heads: int,
    block: int,
    window: int | None,
    soft_cap: float | None,
    interpret: bool,
) -> Callable[..., Any]:
  """Returns the kernel for a row.

  It takes queries `[N, T, H]`, keys and values `[K, T, H]`, and for queries and
  keys the number of their conversation, i32 `[T]`.
  """
  # The import takes longer than all of this package's.
  from jax.experimental.pallas.ops.tpu import splash_attention  # pylint: disable=g-import-not-at-top

  shape = (length, length)
  if window is None:
    mask = splash_attention.CausalMask(shape)
  else:
    mask = splash_attention.LocalMask(shape, (window - 1, 0), 0)
  sizes: Any = {
      field.name: block
      for field in dataclasses.fields(splash_attention.BlockSizes)
      if field.name.startswith('block_')
  }
  with jax.ensure_compile_time_eval():  # Reused by later traces.
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * num_heads),
        block_sizes=splash_attention.BlockSizes(**sizes),
        attn_logits_soft_cap=soft_cap,
        interpret=interpret,
    )

  def call(q, k, v, of_queries, of_keys):
    ids = splash_attention.SegmentIds(q=of_queries, kv=of_keys)
    return kernel(q, k, v, ids)

  return call


def _is_dense(allowed: _blockwise.Allowed) -> jax.Array:
  """Whether tokens of a conversation are as far apart as their positions."""
  before = _last_valid(allowed, shift=1)
  place = jnp.arange(allowed.positions.shape[1])
  by_position = allowed.positions - _at(allowed.positions, before)
  is_dense = (by_position == place - before) | (before < 0)
  return jnp.all(is_dense | ~_valid(allowed))


def _is_empty(allowed: _blockwise.Allowed, window: int | None) -> jax.Array:
  """Returns bool `[B, T]`: whether a query may attend to nothing."""
  last = _last_valid(allowed, shift=0)
  if window is None:
    return last < 0
  place = jnp.arange(last.shape[1])
  return (last < 0) | (place - last >= window)


def _last_valid(allowed: _blockwise.Allowed, *, shift: int) -> jax.Array:
  """Returns i32 `[B, T]`: the place of the last token that is no padding.

  Args:
    allowed: Who may attend to whom.
    shift: How many places before its own a token begins to look.

  Returns:
    A place in the token's own conversation; -1 where there is none.
  """
  length = allowed.positions.shape[1]
  places = jnp.where(_valid(allowed), jnp.arange(length), -1)
  last = jax.lax.cummax(places, axis=1)
  last = jnp.pad(last, ((0, 0), (shift, 0)), constant_values=-1)[:, :length]
  if allowed.segments is None:
    return last
  return jnp.where(_at(allowed.segments, last) == allowed.segments, last, -1)


def _valid(allowed: _blockwise.Allowed) -> jax.Array:
  assert allowed.valid is not None
  return allowed.valid


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
  return jnp.take_along_axis(x, jnp.maximum(places, 0), axis=1)
