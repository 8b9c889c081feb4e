"""Evaluators with LoRA on and off, by what TensorBoard shows."""

import dataclasses

from gemma import gm
from gemma import peft
from grain import python as grain
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import pytest
import sacrebleu

from gemma4_lora import g4
from tests.lib import events
from tests.lib import models
from tests.lib import random_params
from tests.lib import sampling
from tests.lib import training

_KEYS = dict(head='preds.head', labels='batch.target', mask='batch.loss_mask')
_XENT = g4.losses.SoftmaxCrossEntropyWithIntLabels(**_KEYS)


def _lora(name='Gemma4_31B', **kwargs):
  settings = {'rank': 2, 'targets': 'attention'} | kwargs
  return models.lora(name, cut=models.one_layer, **settings)


@dataclasses.dataclass(frozen=True)
class _Pairs(grain.RandomAccessDataSource):
  """Sentences, and which of them were read."""

  num: int = 16
  reads: list[int] = dataclasses.field(default_factory=list)

  def __len__(self) -> int:
    return self.num

  def __getitem__(self, index: int) -> dict[str, str]:
    self.reads.append(index)
    return g4.testing.EnFrPairs(split='test')[index]


def _dataset(source, *, batch_size=None, **kwargs):
  task = g4.data.ChatTask(
      in_prompt='en',
      in_response='fr',
      tokenizer=g4.testing.Gemma4Tokenizer(),
      **{'max_length': 32} | kwargs,
  )
  return kd.data.py.DataSource(
      data_source=source,
      shuffle=False,
      num_epochs=1,
      batch_size=batch_size,
      num_workers=0,
      transforms=[task],
  )


def _evaluator(source=None, **kwargs):
  kwargs = {
      'run': kd.evals.EveryNSteps(n=1),
      'ds': _dataset(source or _Pairs(), batch_size=8),
      'losses': {'xent': _XENT},
      'metrics': {'perplexity': g4.losses.Perplexity(**_KEYS)},
  } | kwargs
  return g4.evals.Evaluator(**kwargs)


def _sampler_evaluator(cls=g4.evals.SamplerEvaluator, **kwargs):
  kwargs = {
      'run': kd.evals.EveryNSteps(n=1),
      'ds': _dataset(_Pairs(num=3), sampling=True),
      'max_new_tokens': 6,
      'cache_length': 64,
      'pad_length': 32,
      'metrics': {'bleu': g4.evals.Bleu(tokenize='char')},
  } | kwargs
  return cls(**kwargs)


def _trainer(model, workdir, **kwargs):
  kwargs = {
      'num_train_steps': 1,
      'writer': g4.train.TerminalWriter(),
      'checkpointer': kd.ckpts.NoopCheckpointer(),
  } | kwargs
  return training.make_trainer(model, workdir, **kwargs)


def _state(params, *, step=0):
  return kd.train.TrainState(
      step=jnp.asarray(step), params=params, opt_state=None, collections={}
  )


def _loss(model, params):
  """Mean cross-entropy over all sentences, from logits, on its own."""
  batches = list(_dataset(_Pairs(), batch_size=16))
  (batch,) = jax.tree.map(jnp.asarray, batches)
  logits = model.apply({'params': params}, batch['input']).logits
  losses = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='', labels=''
  ).get_values(logits, batch['target'])
  return float((losses * batch['loss_mask']).sum() / batch['loss_mask'].sum())


def test_on_and_off_are_those_of_the_model_and_of_the_base(tmp_path):
  """The base's, as gemma computes them with a correct router."""
  model = _lora(
      'Gemma4_26B_A4B',
      modules_to_save=['final_norm'],
      logits_in_training=False,
  )
  params = random_params.make(model)
  trainer = _trainer(model, tmp_path, evals={'eval': _evaluator()})
  aux = trainer.evals['eval'].evaluate(_state(params), step=4)
  on, off = (events.scalars(tmp_path / x) for x in ('eval', 'eval_base'))
  base, _ = peft.split_params(params)
  for found, wanted in (
      (on, _loss(model, params)),
      (off, _loss(g4.nn.RouterFix(model=model.model), base)),
  ):
    assert found.keys() == {'losses/xent', 'metrics/perplexity'}
    np.testing.assert_allclose(found['losses/xent'][4], wanted, rtol=1e-5)
    np.testing.assert_allclose(
        found['metrics/perplexity'][4], np.exp(wanted), rtol=1e-4
    )
  assert abs(on['losses/xent'][4] - off['losses/xent'][4]) > 0.1
  # What Kauldron takes the best checkpoint by.
  got = aux.compute().loss_values['losses/xent']
  np.testing.assert_allclose(got, on['losses/xent'][4], rtol=1e-6)


def test_in_training_one_curve_moves_and_the_other_goes_on(tmp_path):
  source = _Pairs()
  _trainer(_lora(), tmp_path, evals={'test': _evaluator(source)}).train()
  on, off = (
      events.scalars(tmp_path / x)['losses/xent'] for x in ('test', 'test_base')
  )
  assert on.keys() == off.keys() == {0, 1}
  np.testing.assert_allclose(on[0], off[0], rtol=1e-6)  # B is zero.
  assert off[0] == off[1]
  assert abs(on[1] - on[0]) > 1e-3
  # Twice with LoRA, once without.
  assert len(source.reads) == 3 * len(source)


class _Unmasked(grain.MapTransform):

  def map(self, row):
    return row | {'loss_mask': np.zeros_like(row['loss_mask'])}


def test_a_loss_of_no_token_is_an_error(tmp_path):
  model = _lora()
  ds = _dataset(_Pairs(), batch_size=8)
  ds = dataclasses.replace(ds, transforms=[*ds.transforms, _Unmasked()])
  trainer = _trainer(model, tmp_path, evals={'eval': _evaluator(ds=ds)})
  state = _state(random_params.make(model))
  with pytest.raises(
      ValueError, match=r"Evaluator 'eval': the mask of losses\.xent was zero"
  ):
    trainer.evals['eval'].evaluate(state, step=0)


class _Ignored(grain.MapTransform):
  """Labels as Hugging Face's losses take them, and no mask."""

  def map(self, element):
    del element['loss_mask']
    element['target'][0] = -100
    return element


def test_a_label_that_is_no_token_is_an_error(tmp_path):
  """Also where Kauldron's loss makes a finite number of it."""
  model = _lora()
  ds = _dataset(_Pairs(), batch_size=8)
  ds = dataclasses.replace(ds, transforms=[*ds.transforms, _Ignored()])
  loss = kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', labels='batch.target'
  )
  evaluator = _evaluator(ds=ds, losses={'xent': loss}, metrics={})
  trainer = _trainer(model, tmp_path, evals={'eval': evaluator})
  state = _state(random_params.make(model))
  with pytest.raises(
      ValueError,
      match=r"Evaluator 'eval': 8 labels that losses\.xent counts are no token",
  ):
    trainer.evals['eval'].evaluate(state, step=0)


def test_another_base_is_evaluated_anew(tmp_path):
  model = _lora()
  trainer = _trainer(model, tmp_path, evals={'eval': _evaluator()})
  for seed in (0, 1):
    params = random_params.make(model, seed=seed)
    trainer.evals['eval'].evaluate(_state(params), step=seed)
  off = events.scalars(tmp_path / 'eval_base')['losses/xent']
  base, _ = peft.split_params(params)
  np.testing.assert_allclose(off[1], _loss(model.model, base), rtol=1e-5)
  assert abs(off[1] - off[0]) > 0.1


def _sampled(model, params):
  sampler = sampling.sampler(model, params, cls=gm.text.Sampler, pad_length=32)
  task = _dataset(_Pairs(num=3), sampling=True).transforms[0]
  rows = [task.map(_Pairs()[i]) for i in range(3)]
  texts = [sampler.sample(x['input'], max_new_tokens=6) for x in rows]
  return texts, [x['target'].removesuffix('<turn|>') for x in rows]


def test_samples_and_bleu_with_lora_on_and_off(tmp_path):
  """Ours, and gemma's with a model whose LoRA is off."""
  model = _lora()
  params = random_params.make(model)
  base, _ = peft.split_params(params)
  evals = {
      'sampling': _sampler_evaluator(),
      'gemma': _sampler_evaluator(
          gm.evals.SamplerEvaluator, model=model.clone(enabled=False)
      ),
  }
  trainer = _trainer(model, tmp_path, evals=evals)
  for evaluator in trainer.evals.values():
    evaluator.evaluate(_state(params), step=2)
  trainer.evals['sampling'].evaluate(_state(params), step=3)
  on = _sampled(model, params)
  off = _sampled(model.model, base)
  assert on[0] != off[0]
  for name, (texts, wanted) in (
      ('sampling', on),
      ('sampling_base', off),
      ('gemma', off),
  ):
    found = events.scalars(tmp_path / name)
    assert found['summaries/answer'][2] == texts
    score = sacrebleu.corpus_bleu(texts, [wanted], tokenize='char').score
    np.testing.assert_allclose(found['metrics/bleu'][2], score, rtol=1e-6)
    assert score > 0
  # Of the base, the second time: the curve goes on, texts are not said again.
  found = events.scalars(tmp_path / 'sampling_base')
  assert found['metrics/bleu'][3] == found['metrics/bleu'][2]
  assert found['summaries/answer'].keys() == {2}


def test_without_the_base(tmp_path):
  model = _lora(init_lora_weights='gaussian')
  evals = {'eval': _evaluator(with_base=False)}
  trainer = _trainer(model, tmp_path, evals=evals)
  params = random_params.make(model)
  trainer.evals['eval'].evaluate(_state(params), step=0)
  assert not (tmp_path / 'eval_base').exists()


def test_a_run_that_is_told_to_stop_ends_both(tmp_path):
  """The checkpointer lets the batches of an evaluator end."""
  evals = {'eval': _evaluator()}
  evaluator = _trainer(_lora(), tmp_path, evals=evals).evals['eval']
  assert evaluator._base._evaluator.ds_iter is evaluator.ds_iter


def test_dashboards_have_both():
  plots = _evaluator(name='eval').__dashboards__.normalize().dashboards
  (plot,) = plots['metrics'].plots
  assert plot.y_key == 'metrics/perplexity'
  assert list(plot.collections) == ['eval', 'eval_base']


@pytest.mark.parametrize(
    'kwargs, message',
    [
        ({'model': _lora().model}, r"Evaluator 'eval' .* is a Gemma4_31B, not"),
        (
            {'model': _lora(init_lora_weights='pissa')},
            r"(?s)Evaluator 'eval': enabled=False needs .* set with_base=False",
        ),
    ],
)
def test_a_model_whose_lora_cannot_be_off(kwargs, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    _trainer(_lora(), tmp_path, evals={'eval': _evaluator(**kwargs)})
  evals = {'eval': _evaluator(**kwargs, with_base=False)}
  _trainer(_lora(), tmp_path, evals=evals)


def test_two_evaluators_that_write_to_one_place(tmp_path):
  evals = {'eval': _evaluator(), 'eval_base': _evaluator(with_base=False)}
  with pytest.raises(ValueError, match="'eval_base', and evals= has an eval"):
    _trainer(_lora(), tmp_path, evals=evals)
