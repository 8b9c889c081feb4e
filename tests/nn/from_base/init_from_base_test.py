"""How A and B start."""

from gemma import gm
from gemma import peft
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.nn.branches import _pending
from tests.lib import merged
from tests.lib import models
from tests.lib import multimodal
from tests.lib import random_params
from tests.lib import training

_TOKENS = jnp.asarray(np.random.default_rng(0).integers(3, 1000, (2, 12)))


def _model(name='Gemma4_E2B', *, rank=4, **kwargs):
  return models.lora(name, rank=rank, alpha=2 * rank, **kwargs)


def _thin(**kwargs):
  """Of one dense layer, for what does not hang on layers."""
  return _model('Gemma4_31B', cut=models.one_layer, **kwargs)


def _waiting(model):
  """Random base; A and B as `model.init` leaves them."""
  return random_params.pending(random_params.make(model))


def _initialised(model):
  """The parameters of its only layer."""

  @jax.jit  # Compiles only what it returns.
  def init(key):
    params = model.init(key, _TOKENS)['params']
    return {'layer_0': params['layer_0']}

  return init(jax.random.key(0))


_MATRIX = {  # [out, in], as PEFT has it.
    'q': 'ndh->nhd',
    'v': 'kdh->khd',
    'o': 'nhd->dnh',
    'gate': 'fd->fd',
    'down': 'fd->df',
}
_NUM_IN = {'q': 1, 'v': 1, 'o': 2, 'gate': 1, 'down': 1}


def _matrices(view):
  """Weight, A and B as PEFT has them: `[out, in]`, `[r, in]`, `[out, r]`."""
  projection = view.row.projection
  weight = np.einsum(_MATRIX[projection], np.asarray(view.base, np.float64))
  a = np.asarray(view.lora_a, np.float64)
  rank = a.shape[-1]
  a = a.reshape(-1, rank).T
  b = np.asarray(view.lora_b, np.float64).reshape(rank, -1).T
  return weight.reshape(len(b), a.shape[1]), a, b


def _decomposed(init):
  """Yields each projection's name, whole weight, rest, A and B."""
  model = _model('Gemma4_31B', targets=list(_MATRIX), init_lora_weights=init)
  params = _waiting(model)
  before = g4.nn.linears(model, params)
  after = g4.nn.linears(model, g4.nn.init_from_base(model, params))
  for name, view in after.items():
    whole, _, _ = _matrices(before[name])
    yield name, whole, *_matrices(view)


# PiSSA of the exact SVD: `test_towers_layer_by_layer` and, with DoRA, below.
@pytest.mark.parametrize(
    ('init', 'targets'),
    [('pissa_niter_8', ['k', 'o', 'down']), ('olora', 'text')],
)
def test_step_0_is_the_base_model(init, targets):
  """Every projection of a layer, after A, B and the base all changed."""
  model = _model(cut=models.one_layer, targets=targets, init_lora_weights=init)
  params = _waiting(model)
  out = g4.nn.init_from_base(model, params)
  before, after = training.flat(params), training.flat(out)
  whole = training.flat(merged.base(model, out))
  for linear in model.adapted:
    path = linear.row.path
    assert np.abs(after[path] - before[path]).max() > 1e-2, path
    assert after[path].dtype == before[path].dtype
    np.testing.assert_allclose(whole[path], before[path], atol=1e-5)
  assert jax.tree.structure(out) == jax.tree.structure(params)


def test_pissa_takes_the_largest_singular_values():
  """And A and B each have the root of them, as in PEFT."""
  for name, whole, rest, a, b in _decomposed('pissa'):
    u, s, vh = np.linalg.svd(whole, full_matrices=False)
    top = (u[:, :4] * s[:4]) @ vh[:4]
    np.testing.assert_allclose(2.0 * b @ a, top, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(rest, whole - top, atol=1e-4, err_msg=name)
    np.testing.assert_allclose(a @ a.T, np.diag(s[:4] / 2), atol=1e-4)
    np.testing.assert_allclose(b.T @ b, np.diag(s[:4] / 2), atol=1e-4)


def test_randomised_svd_comes_close():
  model = _thin(targets='gate', init_lora_weights='pissa')
  exact = g4.nn.init_from_base(model, _waiting(model))
  model = model.clone(init_lora_weights='pissa_niter_16')
  close = g4.nn.init_from_base(model, _waiting(model))
  again = g4.nn.init_from_base(model, _waiting(model))
  jax.tree.map(np.testing.assert_array_equal, close, again)
  views = g4.nn.linears(model, close)
  for name, want in g4.nn.linears(model, exact).items():
    _, a, b = _matrices(views[name])
    _, want_a, want_b = _matrices(want)
    error = np.linalg.norm(b @ a - want_b @ want_a)
    assert error < 0.05 * np.linalg.norm(want_b @ want_a), name


def test_olora_takes_the_first_directions_of_qr():
  for name, whole, rest, a, b in _decomposed('olora'):
    q, r = np.linalg.qr(whole)
    np.testing.assert_allclose(b @ a, q[:, :4] @ r[:4], atol=1e-4, err_msg=name)
    np.testing.assert_allclose(np.abs(b), np.abs(q[:, :4]), atol=1e-4)
    np.testing.assert_allclose(rest, whole - 2.0 * b @ a, atol=1e-4)


@pytest.mark.parametrize('init', ['pissa', 'olora'])
def test_towers_layer_by_layer(init):
  """Each layer of a stacked weight by itself."""
  base = multimodal.base_of_one_layer('Gemma4_E2B', dtype=jnp.float32)
  rule = g4.targets.Rule
  targets = [
      rule(['q', 'v', 'o', 'up'], tower='vision'),
      rule(['o', 'linear_end'], tower='audio'),
      'subsampling',
  ]
  model = g4.nn.LoRA(
      rank=4, alpha=8, targets=targets, init_lora_weights=init, model=base
  )
  params = random_params.pending(random_params.with_towers(model))
  before = g4.nn.linears(model, params)
  out = g4.nn.init_from_base(model, params)
  for name, view in g4.nn.linears(model, out).items():
    wholes = (whole for whole, _, _ in _layers(before[name]))
    for whole, (rest, a, b) in zip(wholes, _layers(view), strict=True):
      np.testing.assert_allclose(rest, whole - 2 * a @ b, atol=1e-4)
      if init == 'pissa':
        u, s, vh = np.linalg.svd(whole, full_matrices=False)
        top = (u[:, :4] * s[:4]) @ vh[:4]
        np.testing.assert_allclose(2 * a @ b, top, atol=1e-3, err_msg=name)
      else:  # PEFT has it as [out, in].
        q, r = np.linalg.qr(whole.T)
        np.testing.assert_allclose(b.T @ a.T, q[:, :4] @ r[:4], atol=1e-3)


def _layers(view):
  """Yields weight `[in, out]`, A and B of each layer."""
  row = view.row
  over = [x - (row.slot is not None and x > row.slot_axis) for x in row.in_axes]
  weight, a, b = map(np.asarray, (view.base, view.lora_a, view.lora_b))
  if not row.stacked:
    over = [axis + 1 for axis in over]
    weight, a, b = weight[None], a[None], b[None]
  weight = np.moveaxis(weight, over, range(1, 1 + len(over)))
  for w, a_one, b_one in zip(weight, a, b, strict=True):
    a_one = a_one.reshape(-1, 4)
    yield w.reshape(len(a_one), -1), a_one, b_one.reshape(4, -1)


@pytest.mark.parametrize('init', ['gaussian', 'orthogonal'])
def test_drawn_ones_start_at_the_base_model(init):
  targets = ['q', 'k', 'down']
  model = _thin(rank=6, targets=targets, init_lora_weights=init)
  params = _initialised(model)
  for name, view in g4.nn.linears(model, params).items():
    a = np.asarray(view.lora_a).reshape(-1, 6)
    b = np.asarray(view.lora_b).reshape(6, -1)
    np.testing.assert_allclose(a @ b, np.zeros((len(a), b.shape[1])), atol=1e-6)
    if init == 'gaussian':
      assert not np.any(b)
      assert 0.75 / 6 < a.std() < 1.25 / 6, name
    else:
      assert np.linalg.matrix_rank(a) == np.linalg.matrix_rank(b) == 3, name
      assert 0.05 < a.std() * np.sqrt(2) < 0.15, name
  attn = params['layer_0']['attn']
  q, k = attn['q_einsum']['lora']['q'], attn['k_einsum']['lora']['k']
  assert np.all(q['a'] != k['a'])  # Each is drawn anew.


@pytest.mark.parametrize('init', ['gaussian', 'orthogonal'])
def test_each_expert_draws_its_own(init):
  model = _model('Gemma4_26B_A4B', targets='expert_up', init_lora_weights=init)
  model = model.clone(rank=6, model=models.one_layer(model.model))
  params = _initialised(model)
  for name, view in g4.nn.linears(model, params).items():
    a, b = np.asarray(view.lora_a), np.asarray(view.lora_b)
    np.testing.assert_allclose(a @ b, 0, atol=1e-6, err_msg=name)
    assert np.any(b) == (init == 'orthogonal')
    assert np.all(a[0] != a[1]), name


def test_with_dora_the_magnitude_is_that_of_the_whole_weight(tmp_path):
  """Step 0 is the base with both, through the transform."""
  model = _thin(use_dora=True, init_lora_weights='pissa')
  written = g4.testing.make_checkpoint(model.model, tmp_path / 'released')
  written = training.flat(written)
  # All of it: a magnitude is fresh if it is the norm of its own base.
  params = jax.jit(model.init)(jax.random.key(0), _TOKENS)['params']
  for path, x in training.flat(peft.split_params(params).lora).items():
    assert path.endswith('.m') or _pending.is_pending(x), path
  transform = _skip_lora(tmp_path / 'released', model)
  out = transform.transform(_state(params)).params
  whole = training.flat(merged.base(model, out))
  for linear in model.adapted:
    path = linear.row.path
    np.testing.assert_allclose(whole[path], written[path], atol=1e-5)


def test_forgotten_in_a_config(tmp_path):
  model = _thin(init_lora_weights='pissa')
  g4.testing.make_checkpoint(model.model, tmp_path / 'released')
  transform = _skip_lora(tmp_path / 'released', None)
  with pytest.raises(ValueError, match=r'o\.a\. It waits.*model=cfg\.ref'):
    transform.transform(_state(_waiting(model)))


def test_trains_and_resumes_bitwise(tmp_path):
  """The base has changed: Kauldron's own checkpoint has it whole.

  Parts that are trained in full, too, and what they replace stays.
  """
  model = _thin(
      base_dtype=jnp.bfloat16,
      init_lora_weights='olora',
      targets='mlp',
      modules_to_save=['final_norm', 'input_embedding', 'q'],
  )
  released = g4.testing.make_checkpoint(model.model, tmp_path / 'released')
  whole = training.check_resumes_bitwise(
      model, tmp_path, _skip_lora(tmp_path / 'released', model)
  )
  assert np.all(
      np.isfinite(whole.params['layer_0']['mlp']['lora']['down']['a'])
  )
  linear = whole.params['layer_0']['mlp']['linear']
  assert np.any(linear != released['layer_0']['mlp']['linear'])
  params, released = training.flat(whole.params), training.flat(released)
  assert len(model.saved) == 3
  for part in model.saved:
    base = params[part.row.path]
    np.testing.assert_array_equal(base, released[part.row.path])
    assert np.any(params[part.path] != base), part.path


def _skip_lora(path, model):
  return g4.ckpts.SkipLoRA4(
      wrapped=gm.ckpts.LoadCheckpoint(path=path), model=model
  )


def _state(params):
  return kd.train.TrainState(
      step=jnp.asarray(0), params=params, opt_state=None, collections={}
  )


# -------------------------------- Bad input ---------------------------------


def test_twice():
  """The base would lose its largest singular values a second time."""
  model = _model('Gemma4_31B', targets='q', init_lora_weights='pissa')
  params = g4.nn.init_from_base(model, _waiting(model))
  with pytest.raises(
      ValueError, match='A of layer_0.attn.q has values already'
  ):
    g4.nn.init_from_base(model, params)


def test_unknown_name():
  with pytest.raises(ValueError, match="takes one of 'default'.*Got: 'pisa'"):
    _model(init_lora_weights='pisa')


def test_orthogonal_takes_an_even_rank():
  with pytest.raises(ValueError, match='even rank. Got: 3'):
    _model(rank=3, init_lora_weights='orthogonal')


def test_rank_of_the_weight_bounds_that_of_pissa():
  with pytest.raises(
      ValueError, match='rank up to that of the weight.*Got: 99'
  ):
    _model(rank=99, init_lora_weights='pissa')


def test_pissa_takes_a_positive_alpha():
  with pytest.raises(ValueError, match='takes a positive alpha. Got: -2'):
    g4.nn.LoRA(
        rank=2,
        alpha=-2,
        init_lora_weights='pissa',
        model=g4.testing.Gemma4_31B(),
    )


def test_experts_are_refused():
  with pytest.raises(ValueError, match="'olora' does not reach routed experts"):
    _model('Gemma4_26B_A4B', targets='experts', init_lora_weights='olora')


def test_model_of_the_transform_is_one_with_lora():
  with pytest.raises(ValueError, match='model must be the g4.nn.LoRA'):
    _skip_lora('x', g4.testing.Gemma4_31B())
