"""`PartialLoad` of base weights that transformers wrote."""

import json
import os
import shutil

from etils import epath
import jax
import jax.numpy as jnp
from kauldron import kd
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.hf.weights import _base_weights
from gemma4_lora.hf.weights import _by_name
from gemma4_lora.hf.weights import _mapped
from gemma4_lora.hf.weights import _to_tensors
from gemma4_lora.host.ranges import _ranges
from tests.lib import hf_reference
from tests.lib import image_cases
from tests.lib import states
from tests.lib import training

_FILE = 'model.safetensors'
_KV = ('attn.kv_einsum.w', 'attn.key_norm.scale')


def _folder(name):
  return hf_reference.TESTDATA / name


def _state(model, dtype=None):
  """A state of ones, of the shapes that `model.init` gives."""
  shapes = _upstream.abstract_params(model)
  return states.wrap(
      jax.tree.map(lambda x: jnp.ones(x.shape, dtype or x.dtype), shapes)
  )


def _load(path, model, **kwargs):
  state = g4.ckpts.PartialLoad(path=path, **kwargs).transform(_state(model))
  return training.flat(state.params)


def _weights(name):
  return safetensors.numpy.load_file(_folder(name) / _FILE)


def _assert_is(got, want):
  """Bitwise, but for what transformers does not save: KV-shared layers."""
  for key, value in want.items():
    if np.isnan(value).any():
      assert key.endswith(_KV)
    else:
      np.testing.assert_array_equal(got[key], value, key)


@pytest.mark.parametrize('name', ['e', 'dense', 'moe'])
def test_every_leaf_is_where_it_belongs(name):
  """By a map that is written out a second time, by hand."""
  ref = hf_reference.load(name)
  got = _load(_folder(name), ref.model)
  want = training.flat(ref.params)
  assert got.keys() == want.keys()
  _assert_is(got, want)


def test_12b_under_the_names_of_the_hub_and_of_transformers(tmp_path):
  """With its images, and without them, asking for neither; audio is left out."""
  case = image_cases.load('unified_images')
  want = training.flat(case.params)
  weights = _weights('unified_images')
  renamed = {
      'model.' + _hf_names.in_module(_hf_names.short(name))
      if _hf_names.is_in_tower(name)
      else name: value
      for name, value in weights.items()
  }
  assert sum(name not in weights for name in renamed) == 10
  safetensors.numpy.save_file(renamed, tmp_path / _FILE)
  text = case.base.clone(text_only=True)
  for path in (_folder('unified_images'), tmp_path):
    got = _load(path, case.base)
    assert got.keys() == want.keys()
    _assert_is(got, want)
    got = _load(path, text)
    of_images = {k for k in want if 'vision_encoder' in k or '.mm_' in k}
    assert got.keys() == want.keys() - of_images

  # Its projection of audio has no leaf in the model, and is kept as it is.
  audio = 'model.embed_audio.embedding_projection.weight'
  want[f'audio_encoder.{audio}'] = weights[audio]
  tensors = _to_tensors.tensors(
      {path: leaf.shape for path, leaf in want.items()}, case.base.config
  )
  written = {x.name: x.take(want[k]) for k, v in tensors.items() for x in v}
  assert written.keys() == weights.keys()
  for name, value in written.items():
    np.testing.assert_array_equal(value, weights[name], name)


def test_a_tensor_of_a_tower_that_has_no_leaf(tmp_path):
  """Left out where the model has no such tower, and an error where it has."""
  ref = hf_reference.load('e_mm')
  weights = _weights('e_mm') | {'model.vision_tower.x': np.ones(3, np.float32)}
  safetensors.numpy.save_file(weights, tmp_path / _FILE)
  _load(tmp_path, ref.model.clone(text_only=True))
  with pytest.raises(ValueError, match=r'model\.vision_tower\.x'):
    _load(tmp_path, ref.model)


def _shard(weights, path):
  """Writes three files and their index."""
  path.mkdir()
  names = [f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)]
  keys = sorted(weights)
  shards = {key: names[i % 3] for i, key in enumerate(keys)}
  for name in names:
    part = {k: weights[k] for k in keys if shards[k] == name}
    safetensors.numpy.save_file(part, path / name)
  index = path / f'{_FILE}.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': shards}))
  return index


def test_shards_file_and_index_are_the_same(tmp_path):
  ref = hf_reference.load('dense')
  index = _shard(_weights('dense'), tmp_path / 'x')
  want = training.flat(ref.params)
  for path in (tmp_path / 'x', index, _folder('dense') / _FILE):
    _assert_is(_load(path, ref.model), want)


def test_redundant_k_and_v_of_shared_layers_are_read(tmp_path):
  """Original checkpoints carry them, unused."""
  ref = hf_reference.load('e')
  weights = _weights('e')
  for i in range(5, 10):
    for x in ('k_proj', 'v_proj', 'k_norm'):
      key = f'self_attn.{x}.weight'
      weights[f'model.layers.{i}.{key}'] = weights[
          f'model.layers.{i - 5}.{key}'
      ]
  safetensors.numpy.save_file(weights, tmp_path / _FILE)
  got = _load(tmp_path, ref.model)
  _assert_is(got, training.flat(ref.params))
  for x in _KV:
    np.testing.assert_array_equal(got[f'layer_7.{x}'], got[f'layer_2.{x}'])


def test_multimodal_file_with_and_without_towers():
  """A text-only model takes the text; the other the towers too."""
  ref = hf_reference.load('e_mm')
  want = training.flat(ref.params)
  path = _folder('e_mm')
  text = ref.model.clone(text_only=True)
  _assert_is(_load(path, text), want)
  got = _load(path, ref.model)
  _assert_is(got, want)
  weights = _weights('e_mm')
  prefix = 'model.vision_tower.encoder.layers.1'
  block = 'vision_encoder.transformer.stacked_layers.block'
  heads = weights[f'{prefix}.self_attn.v_proj.linear.weight'].reshape(2, 16, 32)
  np.testing.assert_array_equal(
      got[f'{block}.attn.kv_einsum.w'][1, 1], heads.transpose(0, 2, 1)
  )
  up = weights[f'{prefix}.mlp.up_proj.linear.weight']
  np.testing.assert_array_equal(got[f'{block}.mlp.gating_einsum.w'][1, 1], up)
  np.testing.assert_array_equal(
      got[f'{block}.attn.attn_vec_einsum.clip_output_max'][1],
      weights[f'{prefix}.self_attn.o_proj.output_max'],
  )
  np.testing.assert_array_equal(
      got['vision_encoder.entry.pos_emb'][:, 1],
      weights['model.vision_tower.patch_embedder.position_embedding_table'][1],
  )


def test_lora_sharding_and_dtype_of_the_state_stay():
  """bfloat16 over eight devices; LoRA leaves are not touched."""
  ref = hf_reference.load('dense')
  model = g4.nn.LoRA(rank=2, targets='q', model=ref.model)
  params = jax.tree.map(
      lambda x: jnp.ones(x.shape, jnp.bfloat16),
      _upstream.abstract_params(model),
  )
  params = kd.sharding.with_sharding_constraint(
      params, kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  )
  state = states.wrap(params)
  old = states.specs(state)
  new = g4.ckpts.SkipLoRA4(
      wrapped=g4.ckpts.PartialLoad(path=_folder('dense'))
  ).transform(state)
  assert states.specs(new) == old
  got = training.flat(new.params)
  want = training.flat(ref.params)
  for key, value in got.items():
    if '.lora.' in key:
      assert (np.asarray(value) == 1).all()
    else:
      np.testing.assert_array_equal(
          np.asarray(value), want[key].astype(jnp.bfloat16)
      )


def _without(end):
  def edit(weights):
    for name in [name for name in weights if name.endswith(end)]:
      del weights[name]

  return edit


def _edited(tmp_path, name, edit):
  weights = _weights(name)
  edit(weights)
  safetensors.numpy.save_file(weights, tmp_path / _FILE)
  return tmp_path


@pytest.mark.parametrize(
    ('edit', 'match'),
    [
        (
            lambda w: w.pop('model.layers.2.mlp.up_proj.weight'),
            r'layer_2.mlp.gating_einsum',
        ),
        (lambda w: w.update(x=np.ones(3)), r'\bx\b'),
        (
            lambda w: w.update({'model.norm.weight': np.ones(3, np.float32)}),
            r'final_norm.scale',
        ),
        (
            lambda w: w.pop('model.layers.0.layer_scalar'),
            r'layer_0.skip_scale .*in the file layers.0.layer_scalar \(1,\)',
        ),
        (_without('layer_scalar'), 'no weights of a Gemma 4'),
        (
            lambda w: w.pop('model.norm.weight'),
            'final_norm.scale .* norm.weight',
        ),
        (
            lambda w: w.pop('model.layers.0.self_attn.q_norm.weight'),
            'layer_0.attn.query_norm.scale .* layers.0.self_attn.q_norm.weight',
        ),
        (
            lambda w: w.pop('model.embed_tokens.weight'),
            'input_embedding .* embed_tokens.weight',
        ),
        (
            lambda w: w.pop('model.layers.1.mlp.gate_proj.weight'),
            r'layers.1.mlp.gate_proj.weight \(\d+, \d+\), .*up_proj.weight'
            r' \(\d+, \d+\) \(is there\)',
        ),
        (
            lambda w: w.update({'model.layers.999999999.x': np.ones(1)}),
            'layers.999999999.x is of layer 999999999, and there are',
        ),
        (
            lambda w: w.update(
                {'model.language_model.norm.weight': w['model.norm.weight']}
            ),
            'model.norm.weight .*one weight under two names',
        ),
        (
            lambda w: w.update(
                {
                    'model.layers.0.self_attn.q_proj.base_layer.weight': w.pop(
                        'model.layers.0.self_attn.q_proj.weight'
                    )
                }
            ),
            'q_proj.base_layer.weight first. Merge it .model.merge_and_unload',
        ),
        (
            lambda w: w.update(
                {'lm_head.weight': w['model.embed_tokens.weight'] + 1}
            ),
            'lm_head.weight .* differs from model.embed_tokens.weight',
        ),
        (
            lambda w: w.update(
                {'model.layers.1.self_attn.v_proj.weight': np.ones((3, 5))}
            ),
            r'layers.1.self_attn.v_proj.weight \(3, 5\): .* of one shape',
        ),
        (
            lambda w: w.update(
                {'model.layers.1.self_attn.q_proj.weight': np.ones((3, 5))}
            ),
            r'layers.1.self_attn.q_proj.weight has shape \(3, 5\)',
        ),
    ],
)
def test_what_does_not_fit_is_an_error(tmp_path, edit, match):
  ref = hf_reference.load('dense')
  with pytest.raises(ValueError, match=match):
    _load(_edited(tmp_path, 'dense', edit), ref.model)


def test_what_a_file_lacks_can_be_left_as_it_is(tmp_path):
  ref = hf_reference.load('dense')
  lacks = ['norm.weight', 'embed_tokens.weight', 'layers.0.mlp.up_proj.weight']

  def edit(weights):
    for name in lacks:
      del weights[f'model.{name}']

  got = _load(_edited(tmp_path, 'dense', edit), ref.model, missing='warn')
  want = training.flat(ref.params)
  filled = {k for k, x in got.items() if (np.asarray(x) == 1).all()}
  assert filled == {
      'embedder.input_embedding',
      'final_norm.scale',
      'layer_0.mlp.gating_einsum',
  } | {k for k, x in want.items() if (x == 1).all()}


def test_a_head_that_is_the_embedding_is_taken(tmp_path, monkeypatch):
  monkeypatch.setattr(_by_name, '_BLOCK_BYTES', 999)
  ref = hf_reference.load('dense')

  def edit(weights):
    weights['lm_head.weight'] = weights['model.embed_tokens.weight'].copy()

  path = _edited(tmp_path, 'dense', edit)
  _assert_is(_load(path, ref.model), training.flat(ref.params))


@pytest.mark.parametrize('name', ['e_mm', 'moe'])
def test_each_tensor_is_converted_from_its_own_dtype(tmp_path, name):
  """Also of towers, whose layers are stacked in one leaf, and of experts."""
  dtypes = [ml_dtypes.bfloat16, np.float16, np.float32]
  exact = {}

  def edit(weights):
    for i, (key, x) in enumerate(sorted(weights.items())):
      if x.shape:  # No clip bounds, which must be equal.
        weights[key] = np.array(x.astype(dtypes[i % 3]), order='C')
      exact[key] = weights[key].astype(np.float32)

  mixed = _base_weights.open_weights(
      epath.Path(_edited(tmp_path, name, edit)), who='T'
  )
  (tmp_path / 'wide').mkdir()
  safetensors.numpy.save_file(exact, tmp_path / 'wide' / _FILE)
  wide = _base_weights.open_weights(epath.Path(tmp_path / 'wide'), who='T')
  assert mixed.leaves.keys() == wide.leaves.keys()
  widths = set()
  for key, leaf in mixed.leaves.items():
    got = leaf.load()
    widths.add(str(got.dtype))
    assert got.dtype == leaf.dtype
    want = wide.leaves[key].load()
    np.testing.assert_array_equal(got.astype(np.float32), want, key)
  assert widths == {'bfloat16', 'float16', 'float32'}


def test_a_weight_in_two_shards_is_the_indexs_or_an_error(tmp_path):
  ref = hf_reference.load('dense')
  index = _shard(_weights('dense'), tmp_path / 'x')
  said = json.loads(index.read_text())
  key = 'model.norm.weight'
  names = sorted(set(said['weight_map'].values()))
  other = next(n for n in names if n != said['weight_map'][key])
  part = safetensors.numpy.load_file(tmp_path / 'x' / other)
  part[key] = np.full_like(_weights('dense')[key], 7)
  safetensors.numpy.save_file(part, tmp_path / 'x' / other)
  _assert_is(_load(index, ref.model), training.flat(ref.params))
  del said['weight_map'][key]
  index.write_text(json.dumps(said))
  with pytest.raises(
      ValueError, match=f'{key} stands in .*-of-.* and in .*-of-'
  ):
    _load(index, ref.model)
  said['weight_map'][key] = '../model.safetensors'
  index.write_text(json.dumps(said))
  with pytest.raises(ValueError, match='no name of a file beside it'):
    _load(index, ref.model)


def test_shards_without_their_index_are_an_error(tmp_path):
  model = hf_reference.load('dense').model
  index = _shard(_weights('dense'), tmp_path / 'x')
  shard = index.with_name('model-00002-of-00003.safetensors')
  with pytest.raises(
      ValueError, match='1 of 3 shards .* without model.safeten'
  ):
    _load(shard, model)
  index.unlink()
  with pytest.raises(ValueError, match='3 of 3 shards .* Download the index'):
    _load(tmp_path / 'x', model)


def test_a_pipe_is_an_error(tmp_path):
  os.mkfifo(tmp_path / _FILE)
  with pytest.raises(ValueError, match=f'{_FILE} is a pipe'):
    _mapped.list_tensors(epath.Path(tmp_path), who='T')


def test_clips_that_gemma_cannot_keep_apart_are_an_error(tmp_path):
  """It has one for k and v."""
  ref = hf_reference.load('e_mm')
  key = 'model.vision_tower.encoder.layers.0.self_attn.k_proj.input_min'
  other = np.array(-7, np.float32)
  path = _edited(tmp_path, 'e_mm', lambda w: w.update({key: other}))
  with pytest.raises(ValueError, match='kv_einsum.clip_input_min packs at'):
    _load(path, ref.model)


def test_large_data_is_read_in_parts(monkeypatch):
  monkeypatch.setattr(_ranges, '_LOCAL_BYTES', 999)
  ref = hf_reference.load('dense')
  _assert_is(_load(_folder('dense'), ref.model), training.flat(ref.params))


def test_a_file_that_is_cut_after_it_was_listed_is_an_error(tmp_path):
  file = shutil.copy(_folder('dense') / _FILE, tmp_path)
  tensors = _mapped.list_tensors(epath.Path(tmp_path), who='T').values()
  last = max(tensors, key=lambda x: x.offset)
  with open(file, 'r+b') as f:
    f.truncate(last.offset + 1)
  with pytest.raises(ValueError, match=f'truncated: {file} ends too early'):
    last.load()


def test_damaged_files_are_an_error(tmp_path):
  model = hf_reference.load('dense').model
  index = _shard(_weights('dense'), tmp_path / 'x')
  shard = index.with_name('model-00002-of-00003.safetensors')
  data = shard.read_bytes()
  for end in (3, 100, len(data) - 1):
    shard.write_bytes(data[:end])
    with pytest.raises(ValueError, match='truncated.*00002-of'):
      _load(tmp_path / 'x', model)
  shard.write_bytes(b'\x09\0\0\0\0\0\0\0no json: xxxx')
  with pytest.raises(ValueError, match='is damaged'):
    _load(tmp_path / 'x', model)
  safetensors.numpy.save_file({'a': np.ones(2)}, shard)
  with pytest.raises(ValueError, match='does not have them'):
    _load(tmp_path / 'x', model)
  shard.unlink()
  with pytest.raises(FileNotFoundError, match='names model-00002'):
    _load(tmp_path / 'x', model)
  index.write_text('{}')
  with pytest.raises(ValueError, match='has no weight_map'):
    _load(tmp_path / 'x', model)
  shutil.copy(index, tmp_path / 'x' / f'other.{_FILE}.index.json')
  with pytest.raises(ValueError, match='several of them, give the one'):
    _load(tmp_path / 'x', model)


def test_other_files_are_an_error(tmp_path):
  model = hf_reference.load('dense').model
  with pytest.raises(ValueError, match='LoRA of PEFT.*g4.hf.load_peft'):
    _load(_folder('ad_dense'), model)
  header = b'{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}'
  file = tmp_path / _FILE
  file.write_bytes(len(header).to_bytes(8, 'little') + header + b'\0')
  with pytest.raises(ValueError, match='a has dtype F8_E4M3'):
    _load(file, model)


@pytest.mark.parametrize('name', ['e', 'e_mm', 'dense', 'moe'])
def test_whatever_one_tensor_a_file_lacks_the_rest_is_known(name):
  """Of each tensor: its leaf alone is not there, and no other changes."""
  path = epath.Path(_folder(name))
  tensors = _mapped.list_tensors(path, who='T')

  def opened(lacks=None):
    rest = {k: x for k, x in tensors.items() if k != lacks}
    base = _base_weights._opened(_by_name.by_name(rest))
    return {k: (x.shape, x.dtype) for k, x in base.leaves.items()}

  want = opened()
  for lacks in tensors:
    got = opened(lacks)
    gone = want.keys() - got.keys()
    assert len(gone) == 1, lacks
    assert got == {k: x for k, x in want.items() if k not in gone}, lacks
