"""How Gemma 4 12B reads images: projected pixels, no encoder.

Written after `Gemma4UnifiedVisionEmbedder` of transformers 5.24:
https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma4_unified/modeling_gemma4_unified.py
Its last two steps, a norm and a projection, are those that gemma's `Embedder`
has for every vision tower.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

# Position of a padding patch.
_PADDING = -1
# PyTorch's default.
_EPSILON = 1e-5


class UnifiedVision(nn.Module):
  """Stands in a config where other models have a `VisionEncoder`.

  It is given the same patches, of 16 x 16 pixels, and puts 3 x 3 of them together:
  a soft token is a projection of 48 x 48 pixels and their place.

  Attributes:
    d_model: Width of the projection.
    patch_size: Side of a patch, in pixels.
    pooling_kernel_size: How many patches are put together along each side.
    output_length: How many soft tokens an image has at most.
    num_positions: How many places there are along each side.
  """

  d_model: int = 3840
  patch_size: int = 16
  pooling_kernel_size: int = 3
  output_length: int = 280
  num_positions: int = 1120

  def setup(self):
    self.patch_ln1 = _layer_norm()
    self.patch_dense = nn.Dense(self.d_model)
    self.patch_ln2 = _layer_norm()
    self.pos_embedding = self.param(
        'pos_embedding',
        nn.initializers.normal(stddev=0.02),
        (self.num_positions, 2, self.d_model),
    )
    self.pos_norm = _layer_norm()

  @property
  def max_patches(self) -> int:
    return self.output_length * self.pooling_kernel_size**2

  @property
  def num_mm_tokens_per_image(self) -> int:
    return self.output_length

  def __call__(
      self, patches: jax.Array, positions_xy: jax.Array
  ) -> tuple[tuple[jax.Array, jax.Array], ...]:
    """Returns soft tokens `[B l D]`, and which of them are real, `[B l]`.

    Args:
      patches: `[B L P]`, in [0, 1].
      positions_xy: `[B L 2]`, -1 for padding.
    """
    patches, positions = merged(
        patches, positions_xy, side=self.pooling_kernel_size
    )
    x = patches.astype(self.pos_embedding.dtype)
    x = self.patch_ln2(self.patch_dense(self.patch_ln1(x)))
    is_real = positions != _PADDING
    places = self.pos_embedding[jnp.maximum(positions, 0), jnp.arange(2)]
    places = jnp.where(is_real[..., None], places, 0).sum(-2)
    x = self.pos_norm(x + places.astype(x.dtype))
    return ((x, is_real.all(-1)),)


def merged(
    patches: jax.Array, positions_xy: jax.Array, *, side: int
) -> tuple[jax.Array, jax.Array]:
  """Puts squares of patches together, row by row of pixels.

  Args:
    patches: `[B L P]`, of images whose sides are multiples of `side` patches, in
      any order; padding anywhere.
    positions_xy: `[B L 2]`, -1 for padding.
    side: Patches along each side of a square.

  Returns:
    Patches `[B l side*side*P]`, in rows from the top left, padding last; and the
    positions of the squares, `[B l 2]`, -1 for padding.
  """
  is_padding = (positions_xy == _PADDING).all(-1)
  width = positions_xy[..., 0].max(-1, keepdims=True) + 1
  (x, y), (in_x, in_y) = (
      jnp.moveaxis(f(positions_xy, side), -1, 0)
      for f in (jnp.floor_divide, jnp.remainder)
  )
  # A row of squares has `side * width` patches.
  rank = side * side * x + side * width * y + side * in_y + in_x
  rank = jnp.where(is_padding, jnp.iinfo(rank.dtype).max, rank)
  order = jnp.argsort(rank, axis=-1, stable=True)[..., None]
  patches = jnp.take_along_axis(patches, order, axis=-2)
  positions = jnp.take_along_axis(positions_xy, order, axis=-2)

  num_images, num_patches, size = patches.shape
  pixels = round((size // 3) ** 0.5)
  squares = patches.reshape(num_images, -1, side, side, pixels, pixels, 3)
  # To rows of pixels: patch row, pixel row, patch, pixel.
  squares = squares.transpose(0, 1, 2, 4, 3, 5, 6)
  squares = squares.reshape(num_images, -1, side * side * size)
  first = positions[:, :: side * side]
  # -1 // side is -1.
  return squares, first // side


def _layer_norm() -> nn.LayerNorm:
  return nn.LayerNorm(epsilon=_EPSILON, use_fast_variance=False)
