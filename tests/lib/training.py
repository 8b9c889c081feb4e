"""A real Kauldron Trainer on a few random sequences."""

from collections.abc import Mapping
import dataclasses
import pathlib
from typing import Any

from flax import linen as nn
from grain import python as grain
import jax
from kauldron import kd
import numpy as np
import optax

from gemma4_lora import g4

_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class RandomTokens(grain.RandomAccessDataSource):
  """Sequences of tokens, each the same at every look-up."""

  num_examples: int = 32
  vocab_size: int = 1024

  def __len__(self) -> int:
    return self.num_examples

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    tokens = rng.integers(3, self.vocab_size, _LENGTH + 1, np.int32)
    return {'input': tokens[:-1], 'target': tokens[1:, None]}


@dataclasses.dataclass(kw_only=True, eq=False, frozen=True)
class SharedStep(g4.train.TrainStep):
  """A step of several trainers: one program for all of them.

  jax knows a step by its identity, so that a run and those that resume it would
  each trace and compile the same program: most of the time of a test. Model,
  optimizer, losses and sharding of trainers with the same key must be equal.

  Attributes:
    key: Identifies the trainers that share a step.
  """

  key: str

  def __eq__(self, other: object) -> bool:
    return isinstance(other, SharedStep) and self.key == other.key

  def __hash__(self) -> int:
    return hash(self.key)


def make_trainer(
    model: nn.Module,
    workdir: Any,
    *,
    num_train_steps: int,
    learning_rate: float = 1e-2,
    select: str = 'lora',
    batch_size: int = 8,
    data_source: grain.RandomAccessDataSource | None = None,
    **kwargs: Any,
) -> kd.train.Trainer:
  """Returns a Trainer that saves every 10 steps.

  Args:
    model: Its keys read the field `input`.
    workdir: Where it saves.
    num_train_steps: When it stops.
    learning_rate: Of Adam.
    select: Which leaves it trains.
    batch_size: In sequences.
    data_source: Of examples with a `target`; default: random tokens.
    **kwargs: Of the Trainer.
  """
  kwargs = {
      'checkpointer': kd.ckpts.Checkpointer(save_interval_steps=10),
      'writer': kd.train.metric_writer.NoopWriter(),
      'profiler': None,
      # One program for the step and none for `init`, where Kauldron's own
      # compiles three and two: most of the time of a test.
      'trainstep': g4.train.TrainStep(),
      'train_losses': {
          'xent': kd.losses.SoftmaxCrossEntropyWithIntLabels(
              logits='preds.logits', labels='batch.target'
          )
      },
  } | kwargs
  return kd.train.Trainer(
      seed=0,
      workdir=workdir,
      train_ds=kd.data.py.DataSource(
          data_source=data_source
          or RandomTokens(vocab_size=model.config.num_embed),
          shuffle=True,
          batch_size=batch_size,
          num_workers=0,
      ),
      model=model,
      num_train_steps=num_train_steps,
      log_metrics_every=1,
      log_summaries_every=10_000,
      optimizer=kd.optim.partial_updates(
          optax.adam(learning_rate), mask=kd.optim.select(select)
      ),
      **kwargs,
  )


def check_resumes_bitwise(
    model: nn.Module, folder: pathlib.Path, init_transform: Any
) -> kd.train.TrainState:
  """Trains 4 steps, and 2 + 2 from Kauldron's own checkpoint; checks equality.

  Args:
    model: Its keys read the field `input`.
    folder: Where both save.
    init_transform: Restores the base.

  Returns:
    The state after 4 steps.
  """

  def run(workdir, num_train_steps):
    return make_trainer(
        model,
        folder / workdir,
        num_train_steps=num_train_steps,
        checkpointer=kd.ckpts.Checkpointer(save_interval_steps=2),
        init_transform=init_transform,
        trainstep=SharedStep(key=str(folder)),
    ).train()[0]

  whole = run('whole', 4)
  run('cut', 2)
  assert list((folder / 'cut' / 'checkpoints').iterdir())
  cut = run('cut', 4)
  jax.tree.map(np.testing.assert_array_equal, cut.params, whole.params)
  return whole


def flat(params: Mapping[str, Any]) -> dict[str, Any]:
  """Leaves by dotted path."""
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return {
      jax.tree_util.keystr(path, simple=True, separator='.'): leaf
      for path, leaf in leaves
  }
