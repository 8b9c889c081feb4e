"""LoRA leaves from wherever they were saved."""

import dataclasses
import functools
import json
import shutil

import flax
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
from gemma4_lora.gemma4 import _linears
from tests.lib import models
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (1, 8)))


_model = functools.partial(
    models.lora, rank=2, alpha=4, targets=['attention', 'down']
)


@dataclasses.dataclass(frozen=True)
class _State:
  params: dict


def _fresh(trained):
  """The same base, with LoRA leaves as nothing trained them."""
  base, lora = peft.split_params(trained)
  return peft.merge_params(base, jax.tree.map(jnp.zeros_like, lora))


def _transform(lora, trained, **kwargs):
  state = _State(params=_fresh(trained))
  kwargs = {'model': lora} | kwargs
  return g4.ckpts.LoadLoRA(**kwargs).transform(state).params


def _assert_equal(new, old):
  assert jax.tree.structure(new) == jax.tree.structure(old)
  jax.tree.map(np.testing.assert_array_equal, new, old)
  jax.tree.map(lambda x, y: _check_alike(x, y), new, old)


def _check_alike(new, old):
  assert (new.dtype, new.sharding) == (old.dtype, old.sharding)


@pytest.mark.parametrize(
    'settings',
    [
        {},
        {'use_dora': True},
        {'modules_to_save': ['norms', 'embed_tokens']},
        {'dtype': jnp.bfloat16},
    ],
    ids=['plain', 'dora', 'in_full', 'bfloat16'],
)
@pytest.mark.parametrize('with_model', [True, False])
def test_own_folder_there_and_back(settings, with_model, tmp_path):
  model = _model(**settings)
  params = random_params.make(model)
  g4.ckpts.save_lora(tmp_path / 'lora', model=model, params=params)
  loaded = _transform(
      model,
      params,
      path=tmp_path / 'lora',
      model=model if with_model else None,
  )
  _assert_equal(loaded, params)


def test_by_hand_into_a_base_without_lora(tmp_path):
  model = _model()
  params = random_params.make(model)
  g4.ckpts.save_lora(tmp_path / 'lora', model=model, params=params)
  base, _ = peft.split_params(params)
  loaded = g4.ckpts.load_lora(tmp_path / 'lora', model=model, params=base)
  _assert_equal(loaded, params)


def test_is_small(tmp_path):
  model = _model()
  params = random_params.make(model)
  g4.ckpts.save_lora(tmp_path / 'lora', model=model, params=params)
  size = sum(x.stat().st_size for x in (tmp_path / 'lora').iterdir())
  lora = peft.split_params(params).lora
  assert size <= 1.05 * sum(x.nbytes for x in jax.tree.leaves(lora)) + 1e5


@pytest.mark.parametrize(
    ('checkpointer', 'restore'),
    [
        (
            g4.ckpts.LoRACheckpointer,
            lambda trainer: trainer.checkpointer.restore(
                trainer.init_state()
            ).params,
        ),
        (
            kd.ckpts.Checkpointer,
            lambda trainer: ocp.StandardCheckpointer().restore(
                trainer.workdir / 'checkpoints' / 'ckpt_4' / 'default'
            )['params'],
        ),
    ],
)
def test_workdirs_at_any_step(checkpointer, restore, tmp_path):
  """The last one, as it is restored otherwise, and one before."""
  model = _model(cut=models.one_layer, targets=['q', 'down'])
  g4.testing.make_checkpoint(model.model, tmp_path / 'released')

  def trainer(workdir, **kwargs):
    return training.make_trainer(
        model,
        tmp_path / workdir,
        num_train_steps=4,
        checkpointer=checkpointer(save_interval_steps=2),
        init_transform=kd.ckpts.MultiTransform(
            base=g4.ckpts.SkipLoRA4(
                wrapped=gm.ckpts.LoadCheckpoint(path=tmp_path / 'released')
            ),
            **kwargs,
        ),
    )

  first = trainer('first')
  fresh, _ = first.init_state(), first.train()
  load = g4.ckpts.LoadLoRA(path=tmp_path / 'first', model=model)
  goes_on = trainer('second', lora=load).init_state()
  resumed = restore(first)
  jax.tree.map(np.testing.assert_array_equal, goes_on.params, resumed)
  earlier = _transform(model, fresh.params, path=tmp_path / 'first', step=2)
  b = 'layer_0.mlp.lora.down.b'
  last = training.flat(goes_on.params)[b]
  assert np.any(training.flat(earlier)[b])
  assert np.any(training.flat(earlier)[b] != last)


def test_peft_folder(tmp_path):
  model = _model()
  params = random_params.make(model)
  g4.hf.save_peft(tmp_path / 'peft', model=model, params=params)
  _assert_equal(_transform(model, params, path=tmp_path / 'peft'), params)


# ------------------------------ gemma's own -------------------------------


def _gemmas(model, *, seed=0):
  """A tree as gemma's HEAD makes it, and the branches by hand.

  Written from its source a second time: one A per einsum, scale 1, and no
  weight scale.
  """
  rng = np.random.default_rng(seed)
  tree, merged = {}, {}
  rows = _linears.linears(model.config)
  for path in dict.fromkeys(row.path for row in rows):
    packed = [row for row in rows if row.path == path]
    row = packed[0]
    if row.tower != 'text' or row.group == 'experts':
      continue
    a = rng.standard_normal((*row.in_shape, 2)).astype(np.float32)
    gained = [n for i, n in enumerate(row.shape) if i not in row.in_axes]
    b = 0.1 * rng.standard_normal((2, *gained)).astype(np.float32)
    *scope, name = path.split('.')
    einsum = '0' if name == 'w' else name
    node = tree
    for key in (*scope, f'_LoRAEinsum_{einsum}', 'lora'):
      node = node.setdefault(key, {})
    node['a'], node['b'] = jnp.asarray(a), jnp.asarray(b)
    flat = a.reshape(-1, 2) @ b.reshape(2, -1)
    product = flat.reshape(*row.in_shape, *gained)
    axes = [
        *row.in_axes,
        *(i for i in range(len(row.shape)) if i not in row.in_axes),
    ]
    product = product.transpose(np.argsort(axes))
    if row.projection == 'per_layer_model_projection':
      product *= model.config.embed_dim**0.5  # The base has it times D^-0.5.
    merged[path] = product
  return tree, merged


def _save(params, path):
  gm.ckpts.save_params(params, path, wait_until_finished=True)


@pytest.mark.parametrize('name', ['Gemma4_E2B', 'Gemma4_26B_A4B'])
def test_gemmas_own_lora(name, tmp_path):
  targets = ['text', 'router'] if name.endswith('A4B') else 'text'
  model = _model(name, targets=targets, alpha=None)
  params = random_params.make(model)
  tree, merged = _gemmas(model)
  base, _ = peft.split_params(params)
  _save(peft.merge_params(base, tree), tmp_path / 'gemma')
  loaded = g4.ckpts.load_lora(tmp_path / 'gemma', model=model, params=base)

  dense = training.flat(base)
  for path, product in merged.items():
    dense[path] = dense[path] + product
  plain = model.model
  if name.endswith('A4B'):
    plain = g4.nn.RouterFix(model=plain)
  expected = plain.apply(
      {'params': flax.traverse_util.unflatten_dict(dense, sep='.')}, _TOKENS
  ).logits
  actual = model.apply({'params': loaded}, _TOKENS).logits
  np.testing.assert_allclose(actual, expected, atol=2e-3)


def test_gemmas_router_that_the_model_would_drop(tmp_path):
  model = _model('Gemma4_26B_A4B', targets='text', alpha=None)
  base = peft.split_params(random_params.make(model)).original
  tree, _ = _gemmas(model)
  _save(peft.merge_params(base, tree), tmp_path / 'gemma')
  with pytest.raises(ValueError, match=r'not in the model: .*lora.router'):
    g4.ckpts.load_lora(tmp_path / 'gemma', model=model, params=base)


# -------------------------------- Errors ----------------------------------


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder, and what is in it."""
  path = tmp_path_factory.mktemp('saved') / 'lora'
  params = random_params.make(_model())
  g4.ckpts.save_lora(path, model=_model(), params=params)
  return path, params


@pytest.mark.parametrize(
    ('settings', 'match'),
    [
        ({'rank': 3}, r'lora.q.a: model \(40, 3\), file \(40, 2\).* rank='),
        ({'alpha': 2}, r'Scale of .*: model 1, file 2. Set alpha='),
        ({'use_rslora': True}, r'Scale of .*: model 2.8.*, file 2.'),
        ({'targets': 'q'}, r'not in the model: .*missing|unexpected="warn"'),
        ({'targets': 'text'}, r'not in it: .*missing="warn"'),
        ({'use_dora': True}, r'use_dora=: model True, file False'),
    ],
)
def test_other_settings(settings, match, saved):
  path, _ = saved
  model = _model(**settings)
  with pytest.raises(ValueError, match=match):
    _transform(model, random_params.make(model), path=path)


def test_what_is_missing_keeps_its_values_if_the_user_says_so(saved, caplog):
  path, params = saved
  model = _model(targets='text')
  start = random_params.make(model, seed=1)
  state = _State(params=start)
  load = g4.ckpts.LoadLoRA(
      path=path, model=model, missing='warn', other_base='warn'
  )
  loaded = training.flat(load.transform(state).params)
  kept, new = 'layer_0.mlp.lora.gate.b', 'layer_0.mlp.lora.down.b'
  np.testing.assert_array_equal(loaded[kept], training.flat(start)[kept])
  np.testing.assert_array_equal(loaded[new], training.flat(params)[new])
  assert 'LoRA leaves of the model are not in it' in caplog.text
  assert 'was trained on another base' in caplog.text


def test_unexpected_is_left_out_if_the_user_says_so(saved):
  path, params = saved
  model = _model(targets='q')
  base = peft.split_params(params).original
  loaded = g4.ckpts.load_lora(path, model=model, params=base, unexpected='warn')
  np.testing.assert_array_equal(
      loaded['layer_0']['attn']['q_einsum']['lora']['q']['b'],
      params['layer_0']['attn']['q_einsum']['lora']['q']['b'],
  )
  assert 'lora' not in loaded['layer_0']['mlp']


def test_another_base(saved):
  path, _ = saved
  other = random_params.make(_model(), seed=1)
  with pytest.raises(ValueError, match='another base.*\n.*checksums'):
    _transform(_model(), other, path=path)


def test_a_base_of_another_size(saved):
  path, _ = saved
  model = _model('Gemma4_E2B')
  with pytest.raises(ValueError, match=r'model \(32, 2\), file \(40, 2\)'):
    _transform(model, random_params.make(model), path=path)


def test_nothing_there(tmp_path):
  model = _model()
  with pytest.raises(FileNotFoundError):
    _transform(model, random_params.make(model), path=tmp_path / 'none')


def test_a_checkpoint_without_lora(tmp_path):
  model = _model()
  g4.testing.make_checkpoint(model.model, tmp_path / 'base')
  with pytest.raises(ValueError, match='no LoRA leaf in'):
    _transform(model, random_params.make(model), path=tmp_path / 'base')


def test_a_state_without_lora(saved):
  path, params = saved
  base = peft.split_params(params).original
  with pytest.raises(ValueError, match='model has no LoRA leaf. Use g4.nn.L'):
    g4.ckpts.LoadLoRA(path=path).transform(_State(params=base))


def test_truncated(saved, tmp_path):
  path, params = saved
  file = tmp_path / 'lora.safetensors'
  file.write_bytes((path / 'lora.safetensors').read_bytes()[:500])
  (tmp_path / 'lora.json').write_text((path / 'lora.json').read_text())
  with pytest.raises(ValueError, match='lora.safetensors cannot be read'):
    _transform(_model(), params, path=tmp_path)


def test_damage_of_either_file_is_found(saved, tmp_path):
  path, params = saved
  shutil.copytree(path, tmp_path, dirs_exist_ok=True)
  file, said = tmp_path / 'lora.safetensors', tmp_path / 'lora.json'
  data, text = file.read_bytes(), said.read_text()
  start = 8 + int.from_bytes(data[:8], 'little')
  for i in range(start, len(data), (len(data) - start) // 20):
    bad = bytearray(data)
    bad[i] ^= 1 << i % 8
    file.write_bytes(bad)
    with pytest.raises(ValueError, match='lora.safetensors is damaged: layer_'):
      _transform(_model(), params, path=tmp_path)
  file.write_bytes(data)
  said.write_text(text.replace('"float32"', '"float16"', 1))
  with pytest.raises(ValueError, match='lora.json is damaged: .*its digest is'):
    _transform(_model(), params, path=tmp_path)
  values = json.loads(text)
  del values['seal']
  name = next(iter(values['lora']['leaves']))
  values['lora']['leaves'][name][0] = 'float16'
  said.write_text(json.dumps(values))
  with pytest.raises(ValueError, match=f'damaged: {name} is float32.* float16'):
    _transform(_model(), params, path=tmp_path)


def test_nan(saved, tmp_path):
  path, params = saved
  tensors = safetensors.numpy.load_file(path / 'lora.safetensors')
  tensors['layer_0.mlp.lora.down.b'][0] = np.nan
  safetensors.numpy.save_file(tensors, tmp_path / 'lora.safetensors')
  said = json.loads((path / 'lora.json').read_text())
  del said['digests'], said['seal']  # As before there were any.
  (tmp_path / 'lora.json').write_text(json.dumps(said))
  with pytest.raises(
      ValueError, match='NaN or infinite values: layer_0.mlp.lora.down.b'
  ):
    _transform(_model(), params, path=tmp_path)


@pytest.mark.parametrize('argument', ['missing', 'unexpected', 'other_base'])
def test_policies(argument):
  with pytest.raises(ValueError, match=f'{argument} must be one of'):
    g4.ckpts.LoadLoRA(path='x', **{argument: 'ignore'})


def test_step_of_what_is_no_workdir(saved):
  path, params = saved
  with pytest.raises(ValueError, match='step=3, and .* is no workdir'):
    _transform(_model(), params, path=path, step=3)


def test_model_that_has_no_lora():
  with pytest.raises(ValueError, match='model must be the g4.nn.LoRA'):
    g4.ckpts.LoadLoRA(path='x', model=_model().model)


def test_peft_without_a_model(tmp_path):
  model = _model()
  params = random_params.make(model)
  g4.hf.save_peft(tmp_path / 'peft', model=model, params=params)
  with pytest.raises(ValueError, match='PEFT folder .* model=cfg.ref.model'):
    _transform(model, params, path=tmp_path / 'peft', model=None)


# --------------------------------- Save -----------------------------------


def test_does_not_overwrite_unasked(saved):
  path, params = saved
  before = (path / 'lora.json').read_bytes()
  with pytest.raises(FileExistsError, match='overwrite=True'):
    g4.ckpts.save_lora(path, model=_model(), params=params)
  g4.ckpts.save_lora(path, model=_model(), params=params, overwrite=True)
  assert (path / 'lora.json').read_bytes() == before


@pytest.mark.parametrize(
    ('change', 'match'),
    [
        (lambda lora: lora['layer_0'].pop('mlp'), 'params lacks 2 LoRA leaves'),
        (
            lambda lora: lora['layer_0']['mlp']['lora']['down'].update(
                b=jnp.full((2, 40), jnp.nan)
            ),
            'NaN or infinite values: layer_0.mlp.lora.down.b',
        ),
    ],
)
def test_refuses_what_is_no_lora_of_the_model(change, match, tmp_path):
  base, lora = peft.split_params(random_params.make(_model()))
  change(lora)
  params = peft.merge_params(base, lora)
  with pytest.raises(ValueError, match=match):
    g4.ckpts.save_lora(tmp_path / 'x', model=_model(), params=params)
  assert not list(tmp_path.iterdir())


def test_refuses_lora_without_its_base(tmp_path):
  lora = peft.split_params(random_params.make(_model())).lora
  with pytest.raises(ValueError, match='LoRA leaves alone. Give it the base'):
    g4.ckpts.save_lora(tmp_path / 'x', model=_model(), params=lora)


def test_refuses_a_model_without_lora(tmp_path):
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_31B'):
    g4.ckpts.save_lora(tmp_path / 'x', model=_model().model, params={})
