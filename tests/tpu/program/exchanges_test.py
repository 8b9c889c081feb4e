"""Exchanges between devices are read as XLA compiled them."""

import functools

import jax
import jax.numpy as jnp
import pytest

from gemma4_lora.tpu.program import _exchanges
from gemma4_lora.tpu.program import _hlo

_P = jax.sharding.PartitionSpec
_N = 8


def _program(fn, *args):
  return _hlo.Program(jax.jit(fn).lower(*args).compile().as_text())


def _exchanged(body, shape, *, trips=None):
  """Returns what 8 devices exchange when each runs `body` on its part."""
  mesh = jax.make_mesh((_N,), ('d',))

  @functools.partial(
      jax.shard_map,
      mesh=mesh,
      in_specs=_P('d'),
      out_specs=_P('d'),
      check_vma=False,
  )
  def fn(x):
    if trips is None:
      return body(x)
    return jax.lax.fori_loop(0, trips, lambda _, x: body(x), x)

  x = jax.ShapeDtypeStruct(
      shape, jnp.float32, sharding=jax.sharding.NamedSharding(mesh, _P('d'))
  )
  (collective,) = _exchanges.collectives(_program(fn, x), _N)
  return collective


_AROUND = (_N - 1) / _N
_WHOLE = 64 * 32 * 4  # Bytes of f32[64,32]; each device has an eighth.


@pytest.mark.parametrize(
    ('kind', 'body', 'num_bytes', 'sent'),
    [
        (
            'all-gather',
            lambda x: jax.lax.all_gather(x, 'd').sum(0),
            _WHOLE,
            _WHOLE * _AROUND,
        ),
        (
            'all-reduce',
            lambda x: jax.lax.psum(x, 'd'),
            _WHOLE // _N,
            _WHOLE // _N * 2 * _AROUND,
        ),
        (
            'reduce-scatter',
            lambda x: jax.lax.psum_scatter(x, 'd', tiled=True),
            _WHOLE // _N,
            _WHOLE // _N * _AROUND,
        ),
        (
            'all-to-all',
            lambda x: jax.lax.all_to_all(x, 'd', 0, 0, tiled=True),
            _WHOLE // _N,
            _WHOLE // _N * _AROUND,
        ),
        (
            'collective-permute',
            lambda x: jax.lax.ppermute(x, 'd', [(i, i ^ 1) for i in range(_N)]),
            _WHOLE // _N,
            _WHOLE // _N,
        ),
    ],
)
def test_each_kind_of_exchange_has_its_bytes(kind, body, num_bytes, sent):
  found = _exchanged(body, (64, 32))
  assert found.kind == kind
  assert found.count == 1
  assert found.bytes == num_bytes
  assert found.wire_bytes == pytest.approx(sent)


def test_an_exchange_in_a_loop_counts_as_often_as_it_runs():
  once = _exchanged(lambda x: jax.lax.psum(x, 'd') / _N, (64, 32))
  many = _exchanged(lambda x: jax.lax.psum(x, 'd') / _N, (64, 32), trips=5)
  assert (many.count, many.bytes) == (5, 5 * once.bytes)
  assert many.wire_bytes == pytest.approx(5 * once.wire_bytes)


def test_groups_of_devices_send_less_around():
  mesh = jax.make_mesh((2, 4), ('a', 'b'))
  fn = jax.shard_map(
      lambda x: jax.lax.psum(x, 'b'),
      mesh=mesh,
      in_specs=_P('a', 'b'),
      out_specs=_P('a'),
  )
  sharding = jax.sharding.NamedSharding(mesh, _P('a', 'b'))
  x = jax.ShapeDtypeStruct((8, 8), jnp.float32, sharding=sharding)
  (found,) = _exchanges.collectives(_program(fn, x), _N)
  assert found.bytes == 4 * 2 * 4
  assert found.wire_bytes == pytest.approx(found.bytes * 2 * 3 / 4)


# As libtpu 0.0.50 writes them for v6e:2x4, cut short.
_TPU_TEXT = """\
HloModule jit_f, is_scheduled=true

%fused.1 (p: bf16[8,128]) -> bf16[64,128] {
  %p = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  ROOT %all-gather.9 = bf16[64,128]{1,0:T(8,128)(2,1)} all-gather(%p), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
}

ENTRY %main.3 (a: bf16[8,128]) -> bf16[64,128] {
  %a = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %ag = (bf16[8,128]{1,0:T(8,128)(2,1)}, bf16[64,128]{1,0:T(8,128)(2,1)S(1)}) all-gather-start(%a), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  %done = bf16[64,128]{1,0:T(8,128)(2,1)S(1)} all-gather-done(%ag)
  %cp = (f32[4]{0:T(128)}, f32[4]{0:T(128)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %ar = (f32[4,2]{1,0:T(4,128)}, f32[]{:T(128)}) all-reduce(%c, %d), channel_id=4, replica_groups={{0,1},{2,3},{4,5},{6,7}}, to_apply=%add
  ROOT %fusion = bf16[64,128]{1,0:T(8,128)(2,1)} fusion(%a), kind=kCustom, calls=%fused.1
}
"""


def test_what_tpus_write():
  """Starts and ends are one; a fusion that repeats a channel is the same one."""
  found = {
      x.kind: x for x in _exchanges.collectives(_hlo.Program(_TPU_TEXT), _N)
  }
  assert found.keys() == {'all-gather', 'all-reduce', 'collective-permute'}
  assert found['all-gather'].count == 1
  assert found['all-gather'].bytes == 64 * 128 * 2
  assert found['collective-permute'].bytes == 16
  assert found['all-reduce'].bytes == 4 * 2 * 4 + 4
  assert found['all-reduce'].wire_bytes == pytest.approx(36)  # 2 * 1/2.


_BRANCHES = """\
HloModule jit_f, is_scheduled=true

%small (p: f32[8,64]) -> f32[8,64] {
  %p = f32[8,64]{1,0} parameter(0)
  %q = f32[4,64]{1,0} slice(%p), slice={[0:4], [0:64]}
  %ag = f32[32,64]{1,0} all-gather(%q), channel_id=1, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %r = f32[8,64]{1,0} slice(%ag), slice={[0:8], [0:64]}
}

%large (s: f32[8,64]) -> f32[8,64] {
  %s = f32[8,64]{1,0} parameter(0)
  %ag.2 = f32[64,64]{1,0} all-gather(%s), channel_id=2, replica_groups=[1,8]<=[8], dimensions={0}
  ROOT %t = f32[8,64]{1,0} slice(%ag.2), slice={[0:8], [0:64]}
}

ENTRY %main (i: s32[], x: f32[8,64]) -> f32[8,64] {
  %i = s32[] parameter(0)
  %x = f32[8,64]{1,0} parameter(1)
  %y = f32[8,64]{1,0} conditional(%i, %x, %x), branch_computations={%small, %large}
  ROOT %z = f32[8,64]{1,0} conditional(%i, %y, %y), branch_computations={%large, %small}
}
"""


def test_of_branches_the_one_that_exchanges_most_counts():
  (found,) = _exchanges.collectives(_hlo.Program(_BRANCHES), _N)
  assert (found.count, found.bytes) == (2, 2 * 64 * 64 * 4)
  assert found.wire_bytes == pytest.approx(found.bytes * _AROUND)


@pytest.mark.parametrize(
    ('groups', 'size'),
    [
        ('[2,4]<=[8]', 4),
        ('{{0,1},{2,3}}', 2),
        ("mesh['a'=2,'b'=4] {'b'}", 4),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8),
        ("mesh['a'=2,'b'=4] {'b':(2)2}", 2),
    ],
)
def test_spellings_of_groups(groups, size):
  text = _TPU_TEXT.replace('{{0,1},{2,3},{4,5},{6,7}}', groups)
  found = {x.kind: x for x in _exchanges.collectives(_hlo.Program(text), _N)}
  sent = 36 * 2 * (size - 1) / size
  assert found['all-reduce'].wire_bytes == pytest.approx(sent)
