"""A run on disk as one model: leaf by leaf, and the same as `fuse_params`."""

import dataclasses
import json
import os
import pathlib

from gemma import gm
from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from gemma4_lora import g4
from gemma4_lora.ckpts.sources import _hugging_face
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.ckpts.sources import _stream
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.runs import _export
from gemma4_lora.runs import _pieces
from gemma4_lora.runs import _run as run_lib
from gemma4_lora.runs import _write_orbax
from gemma4_lora.testing import _checkpoints
from tests.lib import hf_reference
from tests.lib import models
from tests.lib import sampling
from tests.lib import states
from tests.lib import trained
from tests.lib import training


def _assert_same(got, want):
  got, want = training.flat(got), training.flat(want)
  assert got.keys() == want.keys()
  for key, value in want.items():
    assert got[key].dtype == value.dtype, key
    np.testing.assert_array_equal(
        np.asarray(got[key]), np.asarray(value), err_msg=key
    )


@pytest.fixture(name='in_pieces')
def _in_pieces(monkeypatch):
  """Tiny leaves are handled as those of many gigabytes are.

  Yields the shapes of what was read: of pieces, or of layers of a stack.
  """
  monkeypatch.setattr(_pieces, 'GROUP_BYTES', 1)
  monkeypatch.setattr(_pieces, 'PIECE_BYTES', 2**12)
  monkeypatch.setattr(_pieces, 'MULTIPLE_BYTES', 2**11)
  monkeypatch.setattr(_write_orbax, '_CHUNK_BYTES', 2**11)
  monkeypatch.setattr(_stream, '_SMALL_BYTES', 0)
  seen = []

  def spy(cls, name, shape_of):
    original = getattr(cls, name)

    def read(self, start, rows):
      result = original(self, start, rows)
      seen.append(shape_of(rows, result))
      return result

    monkeypatch.setattr(cls, name, read)

  spy(_stream.Streamed, '_read_into', lambda out, _: out.shape)
  spy(_hugging_face._MappedRows, 'read', lambda _, array: array.shape)
  return seen


_IN_FULL = {
    'init_lora_weights': 'pissa',
    'modules_to_save': ['norms', g4.targets.Rule(['k', 'up'], layers=0)],
}
_QUANTIZED = {
    'targets': ['experts', 'attention', 'down'],
    'quantize': [g4.quant.Int8('attention'), g4.quant.Int4(group_size=2)],
}
# E2B and experts from checkpoints of LoRA alone: `pruned` and `26b` below.
_CASES = {
    'dora': ('Gemma4_E2B', {'use_dora': True}, True),
    'pissa': ('Gemma4_31B', _IN_FULL, False),
    'pissa_in_pieces': ('Gemma4_31B', _IN_FULL, True),
    'experts': (
        'Gemma4_26B_A4B',
        {'targets': ['experts', 'attention']},
        True,
    ),
    'quantized': ('Gemma4_26B_A4B', _QUANTIZED, False),
    'quantized_in_pieces': ('Gemma4_26B_A4B', _QUANTIZED, True),
}


@pytest.mark.parametrize('case', _CASES)
def test_gemma_opens_what_fuse_params_gives(tmp_path, case, request):
  """Bit for bit, from checkpoints of LoRA alone and of Kauldron's own.

  The latter in pieces.
  """
  name, settings, full = _CASES[case]
  read = request.getfixturevalue('in_pieces') if full else None
  base = models.base(name, cut=models.one_layer)
  model = g4.nn.LoRA(rank=2, alpha=4, model=base, **settings)
  run = trained.Run(tmp_path, model, full=full)
  run.export(tmp_path / 'out')
  assert read is None or len(read) > 20
  want = g4.nn.fuse_params(model, run.params)
  shapes = jax.tree.map(
      lambda x: jax.device_put(np.zeros_like(x)), _as_released(want)
  )
  got = gm.ckpts.load_params(tmp_path / 'out', params=shapes)
  _assert_same(got, _as_released(want))
  # Without a tree to restore into, too.
  _assert_same(gm.ckpts.load_params(tmp_path / 'out'), _as_released(want))


@pytest.mark.parametrize('layout', ['stacked', 'hf'])
def test_a_quantized_base_is_quantized_as_in_the_run(tmp_path, layout, request):
  """In pieces; codes that Orbax has no dtype for, and scales in int8."""
  request.getfixturevalue('in_pieces')
  base = models.base('Gemma4_31B')
  local = base.config.attention_types[:1] * 2  # One stack, of two.
  config = dataclasses.replace(base.config, attention_types=local)
  model = g4.nn.LoRA(
      rank=2,
      targets=['q', 'v', 'down'],
      quantize=[
          g4.quant.Int8('mlp'),
          g4.quant.NF4(group_size=2, double=True),
      ],
      model=base.clone(config=config),
  )
  run = trained.Run(tmp_path, model, layout=layout)
  text = run.export(tmp_path / 'out')
  num = len(model.quantized)
  assert f', {num} quantised as in the run and dequantised. Base' in text
  want = g4.nn.fuse_params(model, run.params)
  _assert_same(gm.ckpts.load_params(tmp_path / 'out'), _as_released(want))
  params = _export.read_params(
      model=model,
      init_transform=run.transform,
      workdir=run.workdir,
      who=trained.WHO,
  )
  _assert_same(params, run.params)
  assert g4.nn.check(model, params, fused=want).ok


def test_another_base_is_found_by_its_codes(tmp_path):
  model = g4.nn.LoRA(
      rank=2,
      targets='q',
      quantize=g4.quant.Int4(group_size=2),
      model=models.base(cut=models.one_layer),
  )
  run = trained.Run(tmp_path, model)
  _checkpoints.make_checkpoint(model.model, tmp_path / 'other', seed=9)
  other = g4.ckpts.SkipLoRA4(
      wrapped=g4.ckpts.PartialLoad(path=tmp_path / 'other')
  )
  with pytest.raises(
      ValueError, match=r'codes is not what LoRA was trained on'
  ):
    run.export(tmp_path / 'out', init_transform=other)


def test_the_base_alone_is_as_released(tmp_path):
  model = g4.nn.LoRA(
      rank=2,
      targets='q',
      quantize=g4.quant.Int4(group_size=2),
      model=models.base('Gemma4_31B'),
  )
  written = _checkpoints.make_checkpoint(model.model, tmp_path / 'base')
  transform = g4.ckpts.SkipLoRA4(
      wrapped=g4.ckpts.PartialLoad(path=tmp_path / 'base')
  )
  _export.export(
      tmp_path / 'out',
      model=model,
      init_transform=transform,
      workdir=None,
      who=trained.WHO,
  )
  got = gm.ckpts.load_params(tmp_path / 'out')
  _assert_same(got, _as_released(written))


def _as_released(params):
  """Returns parameters as released checkpoints have them."""
  out = {}
  for key, value in params.items():
    if key in ('gating_einsum', 'linear') and not isinstance(value, dict):
      value = {'w': value}
    out[key] = _as_released(value) if isinstance(value, dict) else value
  return out


# ---------------------------- Hugging Face --------------------------------


def _read(folder):
  """Returns all tensors of a folder, by their files or by their index."""
  index = folder / 'model.safetensors.index.json'
  names = ['model.safetensors']
  if index.exists():
    weight_map = json.loads(index.read_text())['weight_map']
    names = sorted(set(weight_map.values()))
  tensors = {}
  for name in names:
    tensors |= safetensors.numpy.load_file(folder / name)
  if index.exists():
    assert tensors.keys() == weight_map.keys()
  return tensors


@pytest.mark.parametrize('name', ['e', 'dense', 'moe', 'e_mm'])
def test_base_alone_comes_back_as_transformers_wrote_it(tmp_path, name):
  """Names, shapes, bits; towers though the model is text-only; config.json."""
  ref = hf_reference.load(name)
  folder = hf_reference.TESTDATA / name
  note = _export.export(
      tmp_path / 'out',
      model=ref.model.clone(text_only=True),
      init_transform=g4.ckpts.PartialLoad(path=folder),
      workdir=None,
      format='hf',
      max_shard_bytes=50_000,
      who=trained.WHO,
  )
  got, want = _read(tmp_path / 'out'), hf_reference.tensors(name)
  assert got.keys() == want.keys()
  for key, value in want.items():
    np.testing.assert_array_equal(got[key], value, err_msg=key)
  assert len(list((tmp_path / 'out').glob('*.safetensors'))) > 2
  assert 'Not in it: the tokenizer (tokenizer.json)' in note
  got = _json(tmp_path / 'out' / 'config.json')
  want = _json(folder / 'config.json')
  for config in (want.get('text_config', want), got.get('text_config', got)):
    for key in ('per_layer_config', 'global_head_dim'):
      config.pop(key, None)
    config.pop('num_global_key_value_heads', None)
  if name == 'moe':
    assert got['num_experts'] == 6
  assert got == {k: v for k, v in want.items() if k in got}
  assert want.keys() - got.keys() == {'transformers_version'}
  generation = _json(tmp_path / 'out' / 'generation_config.json')
  assert generation['eos_token_id'] == [1, 106, 50]


def _json(path):
  return json.loads(path.read_text())


def test_tokenizer_and_template_come_from_hf_files(tmp_path):
  """Beside a base of Orbax; files that say the weights' own are left there."""
  model = g4.testing.Gemma4_E2B(tokens='batch.input')
  g4.testing.make_checkpoint(model, tmp_path / 'base')
  files = tmp_path / 'files'
  g4.testing.make_checkpoint(model, files, layout='hf')
  for name in (
      'chat_template.jinja',
      'generation_config.json',
      'tokenizer.json',
      'model.safetensors.index.json',
  ):
    (files / name).write_text('{}')
  kwargs = dict(
      init_transform=g4.ckpts.PartialLoad(path=tmp_path / 'base'),
      workdir=None,
      format='hf',
      who=trained.WHO,
  )
  note = _export.export(tmp_path / 'out', model=model, hf_files=files, **kwargs)
  assert note.endswith(
      'For Gemma4ForCausalLM, with generation_config.json, tokenizer.json,'
      f' chat_template.jinja of {files}.'
  )
  assert sorted(x.name for x in (tmp_path / 'out').iterdir()) == [
      'chat_template.jinja',
      'config.json',
      'generation_config.json',
      'model.safetensors',
      'tokenizer.json',
  ]
  with pytest.raises(
      FileNotFoundError, match='--hf_files=.*/none is no folder'
  ):
    _export.export(
        tmp_path / 'two', model=model, hf_files=tmp_path / 'none', **kwargs
    )
  other = tmp_path / 'other'
  g4.testing.make_checkpoint(
      g4.testing.Gemma4_E4B(tokens='batch.input'), other, layout='hf'
  )
  with pytest.raises(
      ValueError,
      match='other/config.json: .* is of another model: .*hidden_size',
  ):
    _export.export(tmp_path / 'two', model=model, hf_files=other, **kwargs)
  assert not (tmp_path / 'two').exists()


@pytest.mark.parametrize(
    'name,text,match',
    [
        (
            'config.json',
            '{"text_config": 5}',
            'text_config should be an object',
        ),
        (
            'config.json',
            '{"per_layer_config": {"2": 3}}',
            'per_layer_config: 2 should be an object of JSON. Got: 3',
        ),
        (
            'tokenizer.json',
            '{"model":',
            'tokenizer.json is damaged, or no JSON',
        ),
        ('tokenizer_config.json', '\xff', 'tokenizer_config.json is damaged'),
        (
            'tokenizer.model',
            'version https://git-lfs.github.com/spec/v1',
            'tokenizer.model cannot be copied: it is a pointer of git-LFS',
        ),
        ('chat_template.jinja', '', 'jinja cannot be copied: it is empty'),
        ('vocab.json', None, 'vocab.json is a pipe'),
    ],
)
def test_a_damaged_file_of_hf_files(tmp_path, name, text, match):
  """A line with its path, before the weights are written; nothing is left."""
  model = g4.testing.Gemma4_E2B(tokens='batch.input')
  g4.testing.make_checkpoint(model, tmp_path / 'base')
  files = tmp_path / 'files'
  files.mkdir()
  if text is None:
    os.mkfifo(files / name)
  else:
    (files / name).write_text(text, encoding='latin-1')
  with pytest.raises(ValueError, match=f'^{trained.WHO}: {files}/.*{match}'):
    _export.export(
        tmp_path / 'out',
        model=model,
        init_transform=g4.ckpts.PartialLoad(path=tmp_path / 'base'),
        workdir=None,
        format='hf',
        hf_files=files,
        who=trained.WHO,
    )
  assert sorted(x.name for x in tmp_path.iterdir()) == ['base', 'files']


@pytest.mark.parametrize('name', ['moe', 'e_mm'])
def test_fused_safetensors_are_what_fuse_params_gives(tmp_path, name, request):
  """Read back by the one who reads those of transformers; towers adapted."""
  read = request.getfixturevalue('in_pieces') if name == 'moe' else None
  ref = hf_reference.load(name)
  # The projection of the tower into the text is not in the test data.
  targets = ['text', 'experts' if name == 'moe' else 'vision']
  model = g4.nn.LoRA(rank=2, model=ref.model, targets=targets)
  run = trained.Run(tmp_path, model, base=hf_reference.TESTDATA / name)
  run.export(tmp_path / 'out', format='hf')
  assert read is None or len(read) > 20
  want = g4.nn.fuse_params(model, run.params)
  state = states.wrap(
      jax.tree.map(
          lambda x: jax.device_put(np.ones(x.shape, x.dtype)),
          _upstream.abstract_params(ref.model),
      )
  )
  got = g4.ckpts.PartialLoad(path=tmp_path / 'out').transform(state).params
  _assert_same(got, want)
  assert any(
      (got_x != old_x).any()
      for got_x, old_x in zip(
          jax.tree.leaves(got),
          jax.tree.leaves(peft.split_params(run.params).original),
          strict=True,
      )
  )


def test_audio_tower_keeps_its_names(tmp_path):
  """Round trip through gemma's layout, of all that a multimodal E2B has."""
  model = models.base('Gemma4_E2B', text_only=False)
  params = _checkpoints.make_checkpoint(model, tmp_path / 'base')
  load = g4.ckpts.PartialLoad
  kwargs = {'model': model, 'workdir': None, 'who': trained.WHO}
  _export.export(
      tmp_path / 'hf',
      init_transform=load(path=tmp_path / 'base'),
      format='hf',
      **kwargs,
  )
  names = _read(tmp_path / 'hf')
  assert 'model.audio_tower.layers.1.norm_out.weight' in names
  assert 'model.language_model.norm.weight' in names
  state = states.wrap(
      jax.tree.map(lambda x: jax.device_put(np.ones_like(x)), params)
  )
  got = load(path=tmp_path / 'hf').transform(state).params
  # k, v and key norms of shared layers are not read by anyone.
  shared = ('layer_2.attn.k', 'layer_3.attn.k')
  want = training.flat(params)
  for key, value in training.flat(got).items():
    if not key.startswith(shared):
      np.testing.assert_array_equal(value, want[key], err_msg=key)


def test_a_fused_26b_says_what_the_run_says(tmp_path):
  """With the router corrected, as `g4.nn.LoRA` corrects it."""
  targets = ['experts', 'attention']
  base = models.base('Gemma4_26B_A4B', cut=models.one_layer, dtype=jnp.float32)
  model = g4.nn.LoRA(rank=2, targets=targets, model=base)
  run = trained.Run(tmp_path, model)
  run.export(tmp_path / 'out')
  fused = gm.ckpts.load_params(tmp_path / 'out')
  _assert_same(fused, _as_released(g4.nn.fuse_params(model, run.params)))
  want = sampling.chat(model, run.params)
  assert sampling.chat(g4.nn.RouterFix(model=base), fused) == want


# -------------------------------- Layouts ---------------------------------


@pytest.mark.parametrize(
    ('layout', 'name'),
    [
        ('flat', 'Gemma4_31B'),
        ('stacked', 'Gemma4_E2B'),
        ('kauldron_w', 'Gemma4_31B'),
    ],
)
def test_base_of_any_layout_comes_out_nested(tmp_path, layout, name, in_pieces):
  model = g4.nn.LoRA(rank=2, model=models.base(name))
  run = trained.Run(tmp_path, model, layout=layout)
  run.export(tmp_path / 'out')
  assert in_pieces
  names = json.loads((tmp_path / 'out' / 'digests.json').read_text())['arrays']
  source = _open.open_source(tmp_path / 'out', who='T')
  assert {x.name for x in jax.tree.leaves(source.tree)} == names.keys()
  source.read(
      {x.key: ocp.RestoreArgs(np.ndarray) for x in source.leaves.values()}
  )
  want = g4.nn.fuse_params(model, run.params)
  _assert_same(gm.ckpts.load_params(tmp_path / 'out'), _as_released(want))


def test_what_pruned_checkpoints_lack_is_filled(tmp_path):
  """gemma declares k and v of shared layers."""
  model = g4.nn.LoRA(rank=2, model=models.base('Gemma4_E2B'))
  run = trained.Run(tmp_path, model, prune_shared_kv=True)
  run.export(tmp_path / 'out')
  want = g4.nn.fuse_params(model, run.params)
  got = training.flat(gm.ckpts.load_params(tmp_path / 'out'))
  want = training.flat(_as_released(want))
  assert got.keys() == want.keys()
  pruned = ('layer_2.attn.k', 'layer_3.attn.k')
  for key, value in want.items():
    if not key.startswith(pruned):
      np.testing.assert_array_equal(got[key], value, err_msg=key)


def test_float32_stays_where_the_model_or_the_file_has_it(tmp_path):
  for model_dtype, base_dtype in (
      ('float32', 'bfloat16'),
      ('bfloat16', 'float32'),
  ):
    path = tmp_path / model_dtype
    path.mkdir()
    base = models.base(cut=models.one_layer, dtype=model_dtype)
    model = g4.nn.LoRA(rank=2, model=base)
    run = trained.Run(path, model, base_dtype=base_dtype)
    run.export(path / 'out')
    got = gm.ckpts.load_params(path / 'out')
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype('float32')}
    want = g4.nn.fuse_params(model, run.params)
    shapes = jax.tree.map(
        lambda x: jax.device_put(np.zeros_like(x)), _as_released(want)
    )
    got = gm.ckpts.load_params(path / 'out', params=shapes)
    _assert_same(got, _as_released(want))


# -------------------------------- Errors ----------------------------------


@pytest.fixture(scope='module', name='run')
def _run(tmp_path_factory):
  model = g4.nn.LoRA(rank=2, alpha=4, model=models.base('Gemma4_31B'))
  return trained.Run(tmp_path_factory.mktemp('run'), model)


def _assert_nothing_left(folder):
  assert not list(pathlib.Path(folder).iterdir())


def test_an_existing_folder_is_replaced_only_when_asked(run, tmp_path):
  out = tmp_path / 'out'
  out.mkdir()
  (out / 'old').touch()
  with pytest.raises(FileExistsError, match='exists.*or --overwrite to repl'):
    run.export(out)
  run.export(out, overwrite=True)
  assert not (out / 'old').exists()
  assert gm.ckpts.load_params(out)
  assert [x.name for x in tmp_path.iterdir()] == ['out']


@pytest.mark.parametrize('pieces', [False, True])
def test_another_base_is_an_error(run, tmp_path, pieces, request):
  """One value of one leaf, found while it is streamed: nothing is written."""
  if pieces:
    request.getfixturevalue('in_pieces')
  params = jax.tree.map(np.array, peft.split_params(run.params).original)
  params['layer_1']['attn']['q_einsum']['w'][0, 0, 0] += 1
  _checkpoints.make_checkpoint(run.model, tmp_path / 'other', params=params)
  (tmp_path / 'to').mkdir()
  with pytest.raises(
      ValueError, match=r'layer_1.attn.q_einsum.w is not what LoRA was trained'
  ):
    run.export(
        tmp_path / 'to' / 'out',
        init_transform=g4.ckpts.PartialLoad(path=tmp_path / 'other'),
    )
  _assert_nothing_left(tmp_path / 'to')


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'rank': 3}, 'rank= of .* checkpoint 2, config 3'),
        ({'alpha': 2}, 'alpha= of .* checkpoint 4, config 2'),
        ({'targets': 'q'}, 'ignored: .*lora'),
        ({'modules_to_save': 'final_norm'}, 'final_norm'),
        ({'use_rslora': True}, 'use_rslora=: checkpoint False, config True'),
    ],
)
def test_other_settings_than_the_run_are_an_error(
    run, tmp_path, settings, match
):
  settings = {'rank': 2, 'alpha': 4} | settings
  model = g4.nn.LoRA(model=models.base('Gemma4_31B'), **settings)
  with pytest.raises(ValueError, match=match):
    run.export(tmp_path / 'out', model=model)
  _assert_nothing_left(tmp_path)


def test_a_run_of_another_rank_without_a_fingerprint(tmp_path):
  run = trained.Run(
      tmp_path, g4.nn.LoRA(rank=2, model=models.base('Gemma4_31B')), full=True
  )
  model = g4.nn.LoRA(rank=3, model=models.base('Gemma4_31B'))
  with pytest.raises(ValueError, match=r'q.a is \(.*2\) in the run.*rank='):
    run.export(tmp_path / 'out', model=model)


def test_a_base_of_another_size_is_an_error(run, tmp_path):
  other = tmp_path / 'other'
  _checkpoints.make_checkpoint(models.base('Gemma4_E2B'), other)
  with pytest.raises(ValueError, match='have another shape'):
    run.export(
        tmp_path / 'out', init_transform=g4.ckpts.PartialLoad(path=other)
    )


def test_a_transform_that_says_no_path_is_an_error(run, tmp_path):
  with pytest.raises(ValueError, match='leaf by leaf: NoopTransform'):
    run.export(tmp_path / 'out', init_transform=kd.ckpts.NoopTransform())


def test_two_bases_are_an_error(run, tmp_path):
  both = kd.ckpts.MultiTransform(a=run.transform, b=run.transform)
  with pytest.raises(ValueError, match='a base from 2 checkpoints'):
    run.export(tmp_path / 'out', init_transform=both)


def test_half_a_base_is_an_error(run, tmp_path):
  part = g4.ckpts.PartialLoad(
      path=run.released, new_to_old={'params.layer_0': 'params.layer_0'}
  )
  with pytest.raises(ValueError, match='the base must come whole'):
    run.export(tmp_path / 'out', init_transform=part)


def test_a_workdir_of_lora_is_no_base(run, tmp_path):
  load = g4.ckpts.PartialLoad(path=run.workdir)
  with pytest.raises(ValueError, match='has LoRA and no base'):
    run.export(tmp_path / 'out', init_transform=load)


def test_a_workdir_that_is_no_run(run, tmp_path):
  with pytest.raises(ValueError, match='one of Hugging Face, not a run'):
    run.export(tmp_path / 'out', workdir=hf_reference.TESTDATA / 'e')
  with pytest.raises(FileNotFoundError, match='no checkpoint at'):
    run.export(tmp_path / 'out', workdir=tmp_path / 'nowhere')
  with pytest.raises(ValueError, match='Available steps: .3.'):
    run.export(tmp_path / 'out', step=7)


def test_a_plain_model_with_a_run_of_lora(run, tmp_path):
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_31B'):
    run.export(tmp_path / 'out', model=run.model.model)


def test_nan_is_an_error(tmp_path):
  run = trained.Run(
      tmp_path, g4.nn.LoRA(rank=2, model=models.base('Gemma4_31B'))
  )
  leaf = run.params['layer_0']['mlp']['lora']['down']
  leaf['b'] = leaf['b'].at[0, 0].set(jnp.nan)
  run.workdir = tmp_path / 'nan'
  run.save()
  with pytest.raises(ValueError, match=r'1 LoRA leaves have NaN.*down.b'):
    run.export(tmp_path / 'out')


@pytest.mark.parametrize('format', ['gemma', 'hf'])
def test_a_full_disk_leaves_nothing(run, tmp_path, format):
  """While no file may grow beyond 20 kB."""
  resource = pytest.importorskip('resource')
  signal = pytest.importorskip('signal')
  old = resource.getrlimit(resource.RLIMIT_FSIZE)
  handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, old[1]))
  try:
    with pytest.raises(Exception, match='(?i)too large'):
      run.export(tmp_path / 'out', format=format)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, old)
    signal.signal(signal.SIGXFSZ, handler)
  _assert_nothing_left(tmp_path)


def test_all_parameters_of_a_run_sharded_as_its_config_says(tmp_path):
  """As it had them, base and LoRA."""
  run = trained.Run(
      tmp_path, g4.nn.LoRA(rank=2, model=models.base('Gemma4_31B'))
  )
  opened = run_lib.open_run(
      run.model, run.transform, workdir=run.workdir, who=trained.WHO
  )
  _assert_same(_export.params_of(opened, who=trained.WHO), run.params)
  sharding = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  params = _export.params_of(opened, sharding=sharding, who=trained.WHO)
  _assert_same(params, run.params)
  weight = params['layer_0']['mlp']['linear']
  assert not weight.sharding.is_fully_replicated
