"""Plans are data: made and printed without an array or a file."""

from kauldron.checkpoints import partial_loader
import numpy as np
import pytest

from gemma4_lora.ckpts.restore import _restore_plan
from gemma4_lora.ckpts.sources import _checkpoint_layouts

_BF16 = np.dtype('float32')


def _model(*paths, shape=(2,)):
  return tuple(
      _restore_plan.ModelLeaf(
          path=('params', *p.split('.')),
          rel=tuple(p.split('.')),
          shape=shape,
          dtype=_BF16,
      )
      for p in paths
  )


def _stored(*paths, shape=(2,), dtype=_BF16):
  return tuple(
      _checkpoint_layouts.Stored(
          path=('params', *p.split('.')),
          key=('params', *p.split('.')),
          shape=shape,
          dtype=np.dtype(dtype),
      )
      for p in paths
  )


def _plan_of(model, stored, **kwargs):
  tree = _restore_plan.SubTree(
      new=('params',), old=('params',), model=model, stored=stored
  )
  return _restore_plan.make_plan([tree], **kwargs)


def _names(leaves):
  return [x.name for x in leaves]


def test_every_leaf_has_one_fate():
  """No leaf of either side is forgotten, and none counts twice."""
  plan = _plan_of(
      _model('a.w', 'b.w', 'c.w', 'd.w', 'x.lora.v.a'),
      (
          *_stored('a.w', 'e.w', 'f.w', 'y.lora.v.a', 'vision_encoder.w'),
          *_stored('b.w', shape=(3,)),
          *_stored('c.w', dtype='int8'),
      ),
      ignore_restored_keys=('f.**',),
  )
  assert [x.model.name for x in plan.loads] == ['params.a.w']
  assert [x.model.name for x in plan.mismatched] == ['params.b.w']
  assert [x.model.name for x in plan.wrong_dtype] == ['params.c.w']
  assert _names(plan.missing) == ['params.d.w']
  assert _names(plan.unexpected) == ['params.e.w']
  assert {k: _names(v) for k, v in plan.left_out.items()} == {
      _restore_plan.LORA: ['params.y.lora.v.a'],
      _restore_plan.IGNORED: ['params.f.w'],
      _restore_plan.TOWERS: ['params.vision_encoder.w'],
  }


def test_prints_as_a_table():
  plan = _plan_of(_model('a.w', 'd.w'), _stored('a.w', 'e.w'))
  assert str(plan) == '     1 loaded\n     1 missing\n     1 unexpected'


@pytest.mark.parametrize('dtype', ['float16', 'float32', 'bfloat16'])
def test_floats_convert(dtype):
  plan = _plan_of(_model('a.w'), _stored('a.w', dtype=dtype))
  assert len(plan.loads) == 1
  assert len(plan.converted) == (dtype != 'float32')


@pytest.mark.parametrize(
    ('model', 'stored'),
    [
        ('layer_0.mlp.linear', 'layer_0.mlp.linear.w'),
        ('layer_0.mlp2.gating_einsum', 'layer_0.mlp2.gating_einsum.w'),
        ('layer_0.mlp.linear.w', 'layer_0.mlp.linear'),
    ],
)
def test_spellings_of_mlp_linears(model, stored):
  """Bare in `model.init`, `{'w': …}` in released files."""
  assert len(_plan_of(_model(model), _stored(stored)).loads) == 1


def test_other_linears_have_one_spelling():
  plan = _plan_of(
      _model('layer_0.attn.q_einsum'), _stored('layer_0.attn.q_einsum.w')
  )
  assert plan.missing and plan.unexpected


@pytest.mark.parametrize(
    ('key', 'glob'),
    [
        ('a.b', 'a.b'),
        ('a.b', '**.b'),
        ('a.b', '*.b'),
        ('a.b', '*'),
        ('a.b', 'a'),
        ('a.b.c', 'a.*.c'),
        ('a.b.c', 'a.**'),
        ('a.b.c', '**.c'),
        ('a.b.c', '**'),
        ('a.b.c', 'a.**.c'),
        ('a.b.c', '**.a'),
        ('a.b.lora.v.a', '**.lora.**'),
        ('a.b.c', '**.d'),
        ('a.bc', '**.b'),
    ],
)
def test_globs_are_those_of_partial_kauldron_loader(key, glob):
  """Where that loader has an answer, ours is the same."""
  plan = _plan_of(_model('z'), _stored(key), ignore_restored_keys=(glob,))
  matched = not plan.unmatched_globs
  assert matched == partial_loader._pattern_match(key, glob)


@pytest.mark.parametrize('glob', ['c.d', 'a.x', 'a.b.c.d', 'a.*.c.d', '**.a.d'])
def test_globs_that_partial_kauldron_loader_trips_over(glob):
  """Where it raises KeyError or RuntimeError, there is no match."""
  plan = _plan_of(_model('z'), _stored('a.b'), ignore_restored_keys=(glob,))
  assert plan.unmatched_globs[0][:2] == ('ignore_restored_keys', glob)
