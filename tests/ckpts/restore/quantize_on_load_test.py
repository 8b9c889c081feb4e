"""A base that is quantised while it is restored."""

import dataclasses
import functools
import json
import logging
import shutil

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.ckpts.restore import _quantize_on_load
from gemma4_lora.ckpts.restore import _read
from gemma4_lora.ckpts.restore import _restore
from gemma4_lora.ckpts.sources import _in_memory
from tests.lib import models
from tests.lib import random_params
from tests.lib import states
from tests.lib import training

_MIXED = (
    g4.quant.Int8('embeddings'),
    g4.quant.NF4(['mlp', 'o'], group_size=2, double=True),
    g4.quant.Int4(group_size=2),
)
_INT4 = (g4.quant.Int4(group_size=2),)


# 31B is for what does not hang on layers. Experts are in two that are alike: for each
# shape of weights, and of their pieces, a program is compiled.
_CUTS = {
    'Gemma4_E2B': models.shallow,
    'Gemma4_26B_A4B': functools.partial(
        models.with_layers, is_global=(True, True)
    ),
    'Gemma4_31B': models.one_layer,
}


def _model(variant, quantize, **kwargs):
  settings = {'base_dtype': jnp.bfloat16, 'rank': 2, 'quantize': quantize}
  return models.lora(variant, cut=_CUTS[variant], **settings, **kwargs)


def _state(model, *, abstract=True, sharding=None):
  """LoRA leaves of 1 and, unless abstract, a base of 1 too."""

  def leaf(path, x):
    is_lora = 'lora' in jax.tree_util.keystr(path, simple=True, separator='.')
    if abstract and not is_lora:
      return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.device_put(np.ones(x.shape, x.dtype), sharding)

  return states.wrap(
      jax.tree_util.tree_map_with_path(leaf, random_params.shapes(model))
  )


_quantize_one = jax.jit(g4.quant.quantize, static_argnames='encoding')


def _wanted(model, written, pruned=()):
  """What the core makes of each array, whole."""
  flat = training.flat(written)
  if pruned:
    flat |= {path: _filled(path, flat[path]) for path in pruned}
  for path, encoding in model.quantized.items():
    value = _quantize_one(jnp.asarray(flat.pop(path)), encoding)
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
  monkeypatch.setattr(_quantize_on_load, 'PIECE_BYTES', 2**10)
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


def test_formats_are_named_beside_the_codes(saved, tmp_path):
  model = _model('Gemma4_E2B', _MIXED)
  kinds = json.loads((saved[0] / 'quantized.json').read_text())
  assert kinds == {k: x.kind for k, x in model.quantized.items()}
  path = shutil.copytree(saved[0], tmp_path / 'ckpt')
  kinds['layer_0.mlp.linear'] = 'int4'
  (path / 'quantized.json').write_text(json.dumps(kinds))
  load, state = g4.ckpts.PartialLoad(path=path), _state(model)
  with pytest.raises(
      ValueError, match='layer_0.mlp.linear of the checkpoint is int4 by .*nf4'
  ):
    load.transform(state)
  (path / 'quantized.json').unlink()  # As checkpoints had none before.
  got = load.transform(state)
  for key, x in training.flat(saved[1]).items():
    np.testing.assert_array_equal(training.flat(got.params)[key], x)


def test_damage_of_codes_and_scales_is_found(saved, tmp_path):
  """By digests; and what no quantiser gives, without them."""
  path = shutil.copytree(saved[0], tmp_path / 'ckpt')
  model = _model('Gemma4_E2B', _MIXED)
  load, state = g4.ckpts.PartialLoad(path=path), _state(model)
  file = path / 'digests.json'
  said = json.loads(file.read_text())
  assert set(said['arrays']) == {
      x for x in training.flat(saved[1]) if '.lora.' not in x
  }
  for name in ('layer_0.mlp.linear.codes', 'final_norm.scale'):
    digests = said['arrays'] | {name: '0' * 16}
    file.write_text(json.dumps({'arrays': digests}))
    with pytest.raises(
        ValueError, match=f'ckpt is damaged: {name} is not what'
    ):
      load.transform(state)
  file.write_text(json.dumps({**said, 'arrays': digests}))
  with pytest.raises(ValueError, match='digests.json is damaged: it is not as'):
    load.transform(state)

  for number, match in ((-1, 'has scales below 0'), (np.nan, 'has NaN')):
    scales = np.array([[1, number]], np.float32)
    source = _in_memory.open_params({'linear': {'scales': scales}}, name='M')
    (key,) = source.leaves
    with pytest.raises(ValueError, match=f'linear.scales {match}'):
      source.read({key: ocp.RestoreArgs(np.ndarray)})


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
  params = {
      'w': {'codes': np.zeros((4, 2), np.int16), 'scales': np.ones((2, 2))}
  }
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


# ------------------------------ On the int4 grid --------------------------


def _on_grid(model, written, *, seed=1):
  """Returns weights, and codes and scales, of the leaves that are quantised.

  By NumPy, `bfloat16(code * scale)`, groups along the input.
  """
  rng = np.random.default_rng(seed)
  bf16 = jnp.bfloat16.dtype
  flat = dict(training.flat(written))
  grids = {}
  for path, encoding in model.quantized.items():
    shape = encoding.scales_shape(flat[path].shape)
    codes = rng.integers(-8, 8, flat[path].shape)
    scales = (0.01 * rng.uniform(1, 2, shape)).astype(bf16)
    wide = scales.astype(np.float32)
    for axis, size in enumerate(encoding.block):
      wide = np.repeat(wide, size, axis)
    grids[path] = codes, scales
    flat[path] = (codes.astype(np.float32) * wide).astype(bf16)
  return traverse_util.unflatten_dict(flat, sep='.'), grids


@pytest.mark.parametrize('layout', ['nested', 'hf'])
def test_weights_on_the_int4_grid_lose_nothing(layout, write, tmp_path, caplog):
  """What is dequantised is the file, bit for bit; shared k and v are pruned."""
  model = _model('Gemma4_E2B', _INT4)
  params, _ = _on_grid(model, write('Gemma4_E2B')[1])
  kwargs = {'prune_shared_kv': True} if layout == 'nested' else {}
  written = g4.testing.make_checkpoint(
      model, tmp_path / 'ckpt', layout=layout, params=params, **kwargs
  )
  pruned = _shared_kv(written)
  load = g4.ckpts.PartialLoad(path=tmp_path / 'ckpt')
  with caplog.at_level(logging.INFO):
    state = g4.ckpts.SkipLoRA4(wrapped=load).transform(_state(model))
  num = len(model.quantized) - sum(path.endswith('.w') for path in pruned)
  assert f'{num} of {num} int4 without loss (on the int4 grid)' in caplog.text
  assert 'largest relative error 0.0000' in caplog.text
  got = training.flat(state.params)
  for path, wanted in training.flat(written).items():
    if path in pruned:
      wanted = _filled(path, wanted)
    if path in model.quantized:
      node = {k: got[f'{path}.{k}'] for k in ('codes', 'scales')}
      dense = g4.quant.dequantize(node, jnp.bfloat16)
    else:
      dense = got[path]
    np.testing.assert_array_equal(
        np.asarray(dense).view(np.uint16) & 0x7FFF,  # -0 is 0.
        np.asarray(wanted).view(np.uint16) & 0x7FFF,
        err_msg=path,
    )


def _pack(codes):
  """`[out, in]` of -8 ... 7 to `int32[out, in / 8]`, by Python's integers."""
  rows = []
  for row in codes:
    words = []
    for i in range(0, len(row), 8):
      word = sum((int(c) + 8) << (4 * j) for j, c in enumerate(row[i : i + 8]))
      words.append(word - 2**32 if word >= 2**31 else word)
    rows.append(words)
  return np.asarray(rows, np.int64).astype(np.int32)


def _packed_file(tmp_path, write, *, group=8):
  """A file of transformers of which some linears are packed; what they are."""
  path, _ = write('Gemma4_31B', 'hf')
  tensors = dict(safetensors.numpy.load_file(path / 'model.safetensors'))
  rng = np.random.default_rng(0)
  dense = {}
  for name in list(tensors):
    if not name.endswith(('q_proj.weight', 'down_proj.weight')):
      continue
    size = tensors.pop(name).shape
    size = (size[0], size[1])
    codes = rng.integers(-8, 8, size)
    scales = rng.uniform(0.01, 0.02, (size[0], size[1] // group))
    scales = scales.astype(jnp.bfloat16.dtype)
    tensors[f'{name}_packed'] = _pack(codes)
    tensors[f'{name}_scale'] = scales
    tensors[f'{name}_shape'] = np.asarray(size, np.int64)
    wide = np.repeat(scales.astype(np.float32), group, 1)
    dense[name] = (codes * wide).astype(jnp.bfloat16.dtype)
  folder = tmp_path / 'packed'
  folder.mkdir()
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  return folder, tensors, dense


def test_packed_weights_of_compressed_tensors(write, tmp_path, caplog):
  folder, _, dense = _packed_file(tmp_path, write, group=4)
  quantize = (g4.quant.Int4(['q', 'down'], group_size=4),)
  model = _model('Gemma4_31B', quantize)
  with caplog.at_level(logging.INFO):
    state = g4.ckpts.PartialLoad(path=folder).transform(_state(model))
  assert '2 of 2 int4 without loss' in caplog.text
  layer = state.params['layer_0']
  q = g4.quant.dequantize(layer['attn']['q_einsum']['w'], jnp.bfloat16)
  wanted = next(x for k, x in dense.items() if 'layers.0.self_attn.q' in k)
  heads, width, size = q.shape
  np.testing.assert_array_equal(
      np.asarray(q), wanted.reshape(heads, size, width).swapaxes(1, 2)
  )
  down = g4.quant.dequantize(layer['mlp']['linear'], jnp.bfloat16)
  wanted = next(x for k, x in dense.items() if 'layers.0.mlp.down' in k)
  np.testing.assert_array_equal(np.asarray(down), wanted.T)


_Q = 'model.layers.0.self_attn.q_proj'


def test_packed_scales_that_no_quantiser_writes(write, tmp_path, caplog):
  folder, tensors, _ = _packed_file(tmp_path, write)
  scales = tensors[f'{_Q}.weight_scale'].copy()
  scales[0, 0], scales[1, 1] = -scales[0, 0], 0
  tensors[f'{_Q}.weight_scale'] = scales
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  with caplog.at_level(logging.WARNING):
    state = _state(_model('Gemma4_31B', None))
    g4.ckpts.PartialLoad(path=folder).transform(state)
  assert f'{folder}: {_Q}.weight_packed: 2 of {scales.size} sc' in caplog.text


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        ({f'{_Q}.qzeros': np.ones((1, 1), np.int32)}, 'q_proj.qzeros: .*GPTQ'),
        (
            {f'{_Q}.weight.absmax': np.ones(4, np.float32)},
            'weight.absmax: unknown packed format: it looks like bitsandbytes',
        ),
        (
            {f'{_Q}.weight_zero_point': np.ones((1, 1), np.int32)},
            'weight_zero_point: unknown packed format: .*not symmetric',
        ),
        ({f'{_Q}.scales': np.ones((1, 1), np.float16)}, 'looks like MLX'),
        ({f'{_Q}.weight_packed': np.ones((1, 1), np.int32)}, 'not 4 bits for'),
        ({f'{_Q}.weight_packed': np.ones((1, 1), np.uint8)}, 'not int32'),
        ({f'{_Q}.weight_scale': np.ones((3, 1), np.float32)}, 'scales .3, 1.'),
        ({f'{_Q}.weight_shape': np.ones(3, np.int64)}, 'weight_shape is .1, 1'),
        (
            {f'{_Q}.weight': np.ones((2, 2), np.float32)},
            'q_proj.weight and .*q_proj.weight_packed are one weight',
        ),
        ({f'{_Q}.weight_scale': None}, 'there is no .*q_proj.weight_scale'),
        ({f'{_Q}.weight': np.ones(2, np.uint32)}, 'U32.*: it looks like MLX'),
    ],
)
def test_what_is_packed_otherwise_is_refused(change, match, write, tmp_path):
  folder, tensors, _ = _packed_file(tmp_path, write)
  tensors = {k: x for k, x in (tensors | change).items() if x is not None}
  safetensors.numpy.save_file(tensors, folder / 'model.safetensors')
  state = _state(_model('Gemma4_31B', _INT4))
  with pytest.raises(ValueError, match=match):
    g4.ckpts.PartialLoad(path=folder).transform(state)


@pytest.mark.parametrize('name', ['', 'model.gguf'])
def test_gguf_is_refused(name, tmp_path):
  (tmp_path / 'model.gguf').write_bytes(b'GGUF')
  state = states.wrap({'w': jnp.ones(2)})
  with pytest.raises(ValueError, match='unknown packed format: gguf'):
    g4.ckpts.PartialLoad(path=tmp_path / name).transform(state)


def test_a_callback_sees_each_weight_and_its_codes(write):
  model = _model('Gemma4_31B', _INT4)
  path, written = write('Gemma4_31B')
  seen = {}

  def look(path, array, value):
    seen['.'.join(path)] = array, value

  request = g4.ckpts.PartialLoad(path=path).request('test')
  request = dataclasses.replace(request, on_quantized=look)
  _restore.restore(_state(model), request)
  flat = training.flat(written)
  assert seen.keys() == model.quantized.keys() - {'embedder.input_embedding'}
  for name, (array, value) in seen.items():
    np.testing.assert_array_equal(array, flat[name])
    assert value['codes'].shape == array.shape
