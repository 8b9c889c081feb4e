"""Loops are read as XLA compiled them."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora.tpu.program import _cost
from gemma4_lora.tpu.program import _hlo


def _program(fn, *args):
  compiled = jax.jit(fn).lower(*args).compile()
  return compiled, _hlo.Program(compiled.as_text())


def test_text_that_is_none():
  with pytest.raises(ValueError, match='has no ENTRY'):
    _ = _hlo.Program('module @jit_f').entry


@pytest.mark.parametrize(
    ('shape', 'num_bytes'),
    [
        ('f32[2,3]{1,0}', 24),
        ('(bf16[4]{0:T(128)(2,1)}, s32[], pred[5])', 8 + 4 + 5),
        ('s4[3]', 2),
        ('token[]', 0),
        ('f8e4m3fn[7]', 7),
        ('(f32[2]{0}, /*index=1*/c64[2]{0})', 8 + 16),
    ],
)
def test_bytes_of_a_shape(shape, num_bytes):
  assert _hlo.shape_bytes(shape) == num_bytes


def _matmuls(trips, x, w):
  return jax.lax.fori_loop(0, trips, lambda _, x: jnp.tanh(x @ w), x)


_X = jax.ShapeDtypeStruct((16, 64), jnp.float32)
_W = jax.ShapeDtypeStruct((64, 64), jnp.float32)
_MATMUL = 2 * 16 * 64 * 64  # Float operations.


def _flops(fn, *args):
  compiled, program = _program(fn, *args)
  return _cost.cost_of(compiled, program)


def test_a_loop_costs_what_its_rounds_cost():
  """XLA counts one; the loop written out is the other side."""
  loop = _flops(functools.partial(_matmuls, 7), _X, _W)

  def written_out(x, w):
    for _ in range(7):
      x = jnp.tanh(x @ w)
    return x

  flat = _flops(written_out, _X, _W)
  assert flat.flops == flat.flops_once
  assert loop.flops_once < 2 * _MATMUL
  assert loop.flops == pytest.approx(flat.flops, rel=0.01)
  assert loop.bytes == pytest.approx(flat.bytes, rel=0.3)
  assert loop.bytes > 3 * loop.bytes_once
  assert loop.unknown_loops == 0


def test_loops_in_loops():
  def fn(x, w):
    return jax.lax.fori_loop(2, 5, lambda _, x: _matmuls(4, x, w) @ w, x)

  found = _flops(fn, _X, _W)
  assert found.flops == pytest.approx(3 * (4 + 1) * _MATMUL, rel=0.02)


def test_loops_of_unknown_length_are_not_read_again(monkeypatch):
  """Attention in blocks has two in each layer, each a long text."""

  def fn(x, w):
    x = jax.lax.while_loop(
        lambda x: jnp.sum(x) < 1e9, lambda x: jnp.tanh(x @ w), x
    )
    return _matmuls(3, x, w)

  compiled, program = _program(fn, _X, _W)
  read = []
  text_of = _hlo.Program.text_of
  monkeypatch.setattr(
      _hlo.Program,
      'text_of',
      lambda self, name: read.append(text_of(self, name)) or read[-1],
  )
  found = _cost.cost_of(compiled, program)
  assert (found.unknown_loops, len(read)) == (1, 1)
  # Of the loop alone, with what it calls.
  assert 'while(' not in read[0]
  assert len(read[0]) < len(program.text) / 2


def test_two_loops():
  def fn(x, w):
    return _matmuls(6, _matmuls(3, x, w) + 1, w)

  found = _flops(fn, _X, _W)
  assert found.flops == pytest.approx(9 * _MATMUL, rel=0.02)


def test_a_loop_over_chunks_in_the_backward_pass():
  """As a chunked loss has one."""

  def fn(xs, w):
    @jax.checkpoint
    def chunk(total, x):
      return total + jnp.sum(jnp.tanh(x @ w)), None

    return jax.lax.scan(chunk, 0.0, xs)[0]

  xs = jax.ShapeDtypeStruct((10, 16, 64), jnp.float32)
  found = _flops(jax.grad(fn), xs, _W)
  # Again forward, and one product back; w has no gradient.
  assert found.flops == pytest.approx(10 * 2 * _MATMUL, rel=0.05)


def test_a_loop_of_unknown_length_counts_once_and_is_said():
  def fn(x, w):
    return jax.lax.while_loop(
        lambda x: jnp.sum(x) < 1e9, lambda x: jnp.tanh(x @ w), x
    )

  found = _flops(fn, _X, _W)
  assert found.unknown_loops == 1
  assert found.flops == found.flops_once


def test_what_stands_in_for_a_kernel_is_not_counted():
  """A call of LAPACK's in the place of the kernel, which needs a TPU."""

  def fn(is_right, x, w):
    return jax.lax.cond(
        is_right,
        lambda x, w: jnp.linalg.cholesky(w),
        lambda x, w: _matmuls(5, w, w),
        x,
        w,
    )

  is_right = jax.ShapeDtypeStruct((), jnp.bool_)
  compiled, program = _program(fn, is_right, _X, _W)
  with_stand_in = _cost.cost_of(compiled, program)
  assert with_stand_in.kernels == 0
  assert with_stand_in.flops > 5 * 2 * 64**3
  kernel = re.sub(
      'custom_call_target="lapack[^"]*"', _hlo._KERNEL, program.text
  )
  found = _cost.cost_of(compiled, _hlo.Program(kernel))
  assert found.kernels == 1
  assert found.flops < 64**3
  assert found.bytes < with_stand_in.bytes


def test_attributes_of_several_lines():
  """As those of kernels are."""
  text = """HloModule m

ENTRY %main (x: f32[4]) -> f32[4] {
  %x = f32[4]{0} parameter(0)
  %y = f32[4]{0} custom-call(%x), custom_call_target="tpu_custom_call",
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="a"}
  ROOT %z = f32[4]{0} negate(%y)
}
"""
  program = _hlo.Program(text)
  names = [x.name for x in program.computations['main']]
  assert names == ['x', 'y', 'z']
  assert program.text_of('main').endswith('negate(%y)\n}\n\n')


def test_the_operations_of_a_matmul_are_xlas():
  """The other tests' constant."""
  found = _flops(lambda x, w: x @ w, _X, _W)
  np.testing.assert_allclose(found.flops, _MATMUL, rtol=0.01)
