"""8-bit integers, a scale per output channel."""

import dataclasses

import jax
import jax.numpy as jnp
import qwix

from gemma4_lora.quant import _format


@dataclasses.dataclass(frozen=True)
class Int8(_format.Format):
  """8-bit integers, a float32 scale per output channel; in tables, per row.

  A scale is `largest / 127.5`, as in qwix.
  """

  kind = 'int8'
  codes_dtype = jnp.int8

  @classmethod
  def encode(
      cls, array: jax.Array, encoding: _format.Encoding
  ) -> tuple[jax.Array, jax.Array]:
    made = qwix.quantize(
        array.astype(jnp.float32),
        cls.codes_dtype,
        tiled_axes=dict(enumerate(encoding.block)),
    )
    return made.qvalue, made.scale.astype(encoding.scale_dtype)
