"""Configs of tiny trainings, for tests of the planner."""

from kauldron import konfig

# pylint: disable=g-import-not-at-top
with konfig.imports():
  from kauldron import kd
  import optax

  from gemma4_lora import g4
  from tests.lib import models
  from tests.lib import training
# pylint: enable=g-import-not-at-top


def config(variant: str = 'Gemma4_31B', *, cut: str = 'shallow', **kwargs):
  """Returns the config of a Trainer of a tiny model.

  Args:
    variant: Name of the tiny model.
    cut: Which layers to keep: name of a function in `tests/lib/models.py`.
    **kwargs: Arguments of the Trainer.
  """
  base = getattr(g4.testing, variant)(tokens='batch.input')
  kwargs = {
      'train_ds': kd.data.py.DataSource(
          data_source=training.RandomTokens(),
          shuffle=False,
          batch_size=8,
          num_workers=0,
      ),
      'train_losses': {
          'xent': kd.losses.SoftmaxCrossEntropyWithIntLabels(
              logits='preds.logits', labels='batch.target'
          )
      },
  } | kwargs
  return kd.train.Trainer(
      seed=0,
      workdir='/nowhere',
      model=g4.nn.LoRA(rank=4, model=getattr(models, cut)(base)),
      optimizer=kd.optim.partial_updates(
          optax.adam(1e-3), mask=kd.optim.select('lora')
      ),
      num_train_steps=1,
      **kwargs,
  )
