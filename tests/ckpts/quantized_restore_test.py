"""A base that is quantised while it is restored."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _quantize
from gemma4_lora.ckpts import _read
from tests import training
from tests.ckpts import states

_MIXED = (
    g4.quant.Int8('embeddings'),
    g4.quant.NF4(['mlp', 'o'], group_size=2, double=True),
    g4.quant.Int4(group_size=2),
)
_INT4 = (g4.quant.Int4(group_size=2),)


@functools.cache
def _model(variant, quantize, **kwargs):
  cls = getattr(g4.testing, variant)
  base = training.shallow(cls(tokens='batch.input', text_only=True))
  return g4.nn.LoRA(rank=2, model=base, quantize=quantize, **kwargs)


@functools.cache
def _shapes(model):
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


def _state(model, *, abstract=True, sharding=None):
  """LoRA leaves of 1 and, unless abstract, a base of 1 too."""

  def leaf(path, x):
    is_lora = 'lora' in jax.tree_util.keystr(path, simple=True, separator='.')
    if abstract and not is_lora:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.device_put(jnp.ones(x.shape, x.dtype), sharding)

  return states.wrap(jax.tree_util.tree_map_with_path(leaf, _shapes(model)))


def _wanted(model, written, pruned=()):
  """What the core makes of each array, whole."""
  quantize = jax.jit(g4.quant.quantize, static_argnames='layout')
  flat = training.flat(written)
  if pruned:
    flat |= {path: _filled(path, flat[path]) for path in pruned}
  for path, layout in model.quantized.items():
    value = quantize(jnp.asarray(flat.pop(path)), layout)
    flat |= {f'{path}.{k}': x for k, x in training.flat(value).items()}
  return flat


def _filled(path, like):
  return np.full(like.shape, path.endswith('scale'), like.dtype)


def _shared_kv(written):
  """Paths of the last two of four layers, which reuse keys and values."""
  parts = ('kv_einsum.w', 'key_norm.scale')
  return [
      path
      for path in training.flat(written)
      if path.startswith(('layer_2.attn', 'layer_3.attn'))
      and path.endswith(parts)
  ]


def _check_restored(state, old, model, written, pruned=()):
  got, like = training.flat(state.params), training.flat(old.params)
  wanted = _wanted(model, written, pruned)
  assert got.keys() == like.keys()
  for path, x in got.items():
    assert isinstance(x, jax.Array)
    assert (x.shape, x.dtype) == (like[path].shape, like[path].dtype)
    if 'lora' not in path:
      np.testing.assert_array_equal(x, wanted[path], err_msg=path)


@pytest.fixture(scope='module')
def write(tmp_path_factory):
  @functools.cache
  def make(variant, layout='nested', **kwargs):
    path = tmp_path_factory.mktemp('ckpt') / f'{variant}-{layout}'
    model = _model(variant, _INT4)
    return path, g4.testing.make_checkpoint(
        model, path, layout=layout, **kwargs
    )

  return make


@pytest.mark.parametrize('abstract', [True, False])
@pytest.mark.parametrize('layout', [*states.LAYOUTS, 'hf'])
def test_every_layout_gives_codes_and_scales_of_its_arrays(
    layout, abstract, write
):
  model = _model('Gemma4_E2B', _MIXED)
  path, written = write('Gemma4_E2B', layout)
  old = _state(model, abstract=abstract)
  load = g4.ckpts.PartialLoad(path=path)
  state = g4.ckpts.SkipLoRA4(wrapped=load).transform(old)
  # Files of transformers are without what is never read.
  pruned = _shared_kv(written) if layout == 'hf' else ()
  _check_restored(state, old, model, written, pruned)


@pytest.mark.parametrize('layout', ['nested', 'stacked', 'hf'])
def test_pieces_and_rows_give_what_the_whole_gives(layout, write, monkeypatch):
  """With sizes so small that all that can be cut is."""
  monkeypatch.setattr(_quantize, 'PIECE_BYTES', 2**10)
  monkeypatch.setattr(_read, '_MIN_GROUP_BYTES', 2**10)
  model = _model('Gemma4_26B_A4B', _MIXED)
  path, written = write('Gemma4_26B_A4B', layout)
  old = _state(model)
  state = g4.ckpts.PartialLoad(path=path).transform(old)
  _check_restored(state, old, model, written)


# ------------------------------- Saved again ------------------------------


@pytest.fixture(scope='module')
def saved(write, tmp_path_factory):
  """A checkpoint of `_MIXED`, and what was saved."""
  model = _model('Gemma4_E2B', _MIXED)
  path, _ = write('Gemma4_E2B')
  params = g4.ckpts.PartialLoad(path=path).transform(_state(model)).params
  path = tmp_path_factory.mktemp('saved') / 'ckpt'
  g4.ckpts.save_quantized(path, model=model, params=params)
  return path, params


def test_saved_codes_and_scales_are_read_as_they_are(saved):
  path, params = saved
  model = _model('Gemma4_E2B', _MIXED)
  old = _state(model, abstract=False)
  load = g4.ckpts.PartialLoad(path=path)
  state = g4.ckpts.SkipLoRA4(wrapped=load).transform(old)
  wanted = training.flat(params)
  for key, x in training.flat(state.params).items():
    assert x.dtype == wanted[key].dtype
    np.testing.assert_array_equal(x, wanted[key], err_msg=key)


@pytest.mark.parametrize(
    ('quantize', 'match'),
    [
        (
            None,
            r'layer_0.attn.q_einsum.w: model not quantised, checkpoint int4 in'
            r' groups of 2, scales bfloat16(?s:.*)quantize=\[.*'
            r'g4.quant.Int4\(group_size=2\)',
        ),
        (
            (*_MIXED[:2], g4.quant.Int4(group_size=4, select='attention')),
            r'layer_0.attn.kv_einsum.w: model int4 in groups of 4, scales'
            r' bfloat16, checkpoint int4 in groups of 2, scales bfloat16',
        ),
        ('int8', r'mlp.linear: model int8 .*checkpoint nf4 .*scales int8'),
    ],
)
def test_a_checkpoint_in_another_format_is_refused(quantize, match, saved):
  state = _state(_model('Gemma4_E2B', quantize), abstract=False)
  with pytest.raises(ValueError, match=match):
    g4.ckpts.PartialLoad(path=saved[0]).transform(state)
  assert not any(x.is_deleted() for x in jax.tree.leaves(state))


def test_codes_of_an_unknown_dtype_are_refused(tmp_path):
  params = {'w': {'codes': np.zeros((4, 2), np.int16), 'scales': np.ones((2, 2))}}
  with ocp.PyTreeCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'ckpt', params)
  state = states.wrap({'w': jnp.ones((4, 2))})
  with pytest.raises(
      ValueError, match=r'params.w .*format that is not known.*int16'
  ):
    g4.ckpts.PartialLoad(path=tmp_path / 'ckpt').transform(state)


def test_save_quantized_refuses(saved, tmp_path):
  path, params = saved
  model = _model('Gemma4_E2B', _MIXED)
  save = g4.ckpts.save_quantized
  with pytest.raises(FileExistsError, match='overwrite=True'):
    save(path, model=model, params=params)
  with pytest.raises(ValueError, match='model= quantises nothing'):
    save(tmp_path / 'x', model=_model('Gemma4_E2B', None), params=params)
  with pytest.raises(ValueError, match='leaves of the base are not as'):
    save(tmp_path / 'x', model=_model('Gemma4_E2B', _INT4), params=params)
  with pytest.raises(ValueError, match='has no value .*ShapeDtypeStruct'):
    save(tmp_path / 'x', model=model, params=_state(model).params)
  assert not (tmp_path / 'x').exists()
