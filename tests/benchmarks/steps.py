"""The same training in four ways, compiled and ready to run.

`ours`, `by_hand`, `kauldron` (our LoRA, all else Kauldron's: its step, full
logits, its loss) and `gemma_head`, gemma's git HEAD with its own LoRA in
Kauldron: only that one runs without `gemma4_lora`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from gemma import gm
from gemma import peft
from grain import python as grain
import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax

from tests.benchmarks import by_hand
from tests.benchmarks import sizes

NAMES = ('ours', 'by_hand', 'kauldron', 'gemma_head')


@dataclasses.dataclass(frozen=True)
class RandomTokens(grain.RandomAccessDataSource):
  """Sequences of tokens, each the same at every look-up."""

  size: sizes.Size

  def __len__(self) -> int:
    return 1024

  def __getitem__(self, index: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(index)
    tokens = rng.integers(
        3, self.size.vocabulary, self.size.length + 1, np.int32
    )
    return {'input': tokens[:-1], 'target': tokens[1:, None]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
  """A step that can be lowered, and what it takes.

  Attributes:
    lower: Takes state and batch, arrays or shapes.
    state: Shapes of what is trained and of all else.
    batch: Shapes of it.
    frozen: What the step takes between state and batch.
    split: From parameters to the step's `(state, *frozen)`.
    loss: Of what the step returns beside the state.
  """

  lower: Callable[..., Any]
  split: Callable[[Any], tuple[Any, ...]]
  loss: Callable[[Any], float]
  params: Any
  batch: Any

  def lowered(self) -> Any:
    """Traced for shapes alone."""
    return self.lower(*jax.eval_shape(self.split, self.params), self.batch)


def trainer(
    name: str,
    size: sizes.Size,
    *,
    workdir: Any = '/unused',
    released: Any = None,
    settings: dict[str, Any] | None = None,
) -> kd.train.Trainer:
  """Returns a Trainer.

  Args:
    name: One of `NAMES`.
    size: Of the model and the batch.
    workdir: Where it saves.
    released: Checkpoint of the base; None for none.
    settings: More of the model's, as of `g4.nn.LoRA`.
  """
  pieces = _head if name == 'gemma_head' else _ours
  return kd.train.Trainer(
      seed=0,
      workdir=workdir,
      train_ds=kd.data.py.DataSource(
          data_source=RandomTokens(size),
          shuffle=True,
          batch_size=size.batch,
          num_workers=0,
      ),
      num_train_steps=1,
      optimizer=kd.optim.partial_updates(
          optax.adam(1e-3), mask=kd.optim.select('lora')
      ),
      writer=kd.train.metric_writer.NoopWriter(),
      # A batch may be one row, and tests have eight devices.
      sharding=kd.sharding.ShardingStrategy(batch=kd.sharding.REPLICATED),
      **pieces(name, size, released, settings or {}),
  )


def _head(name, size, released, settings):
  del name
  load = gm.ckpts.LoadCheckpoint(path=released)
  return dict(
      model=gm.nn.LoRA(
          rank=size.rank,
          dtype=jnp.dtype(size.dtype),
          model=size.model(),
          **settings,
      ),
      init_transform=gm.ckpts.SkipLoRA(wrapped=load),
      checkpointer=kd.ckpts.Checkpointer(save_interval_steps=1),
      train_losses={'xentropy': _full_logits()},
  )


def _full_logits():
  return kd.losses.SoftmaxCrossEntropyWithIntLabels(
      logits='preds.logits', labels='batch.target'
  )


def _ours(name, size, released, settings):
  from gemma4_lora import g4

  is_ours = name == 'ours'
  if is_ours:
    settings = {'logits_in_training': False} | settings
    ours = g4.losses.SoftmaxCrossEntropyWithIntLabels(
        head='preds.head', labels='batch.target'
    )
  loss = ours if is_ours else _full_logits()
  load = gm.ckpts.LoadCheckpoint(path=released)
  checkpointer = g4.ckpts.LoRACheckpointer if is_ours else kd.ckpts.Checkpointer
  return dict(
      model=g4.nn.LoRA(rank=size.rank, model=size.model(), **settings),
      init_transform=g4.ckpts.SkipLoRA4(wrapped=load),
      checkpointer=checkpointer(save_interval_steps=1),
      train_losses={'xentropy': loss},
      trainstep=g4.train.TrainStep() if is_ours else kd.train.TrainStep(),
  )


def make(name: str, size: sizes.Size, **settings: Any) -> Step:
  """Returns the step of an implementation; `settings` as of its LoRA."""
  made = trainer(name, size, settings=settings)
  tokens = jax.ShapeDtypeStruct((size.batch, size.length), jnp.int32)
  params = jax.eval_shape(made.model.init, jax.random.key(0), tokens)['params']
  target = jax.ShapeDtypeStruct((*tokens.shape, 1), jnp.int32)
  shapes = dict(params=params, batch={'input': tokens, 'target': target})
  if name == 'by_hand':
    optimizer = optax.adam(1e-3)

    def split(params):
      base, lora = peft.split_params(params)
      return (lora, optimizer.init(lora)), base

    step = by_hand.make_step(made.model, optimizer)
    return Step(lower=step.lower, split=split, loss=float, **shapes)

  def lower(state, batch):
    return made.trainstep.step.lower(
        made.trainstep, state, batch, return_losses=True
    )

  def as_state(params):
    state = kd.train.TrainState(
        step=jnp.asarray(0),
        params=params,
        opt_state=made.optimizer.init(params),
        collections={},
    )
    return (state,)

  def loss(aux):
    # Beside them, the program of ours says what its step looks at later.
    states = getattr(aux.loss_states, 'loss_states', aux.loss_states)
    aux = aux.replace(loss_states=states)
    return float(aux.compute().loss_values['losses/total'])

  return Step(lower=lower, split=as_state, loss=loss, **shapes)


def fill(params: Any) -> Any:
  """Returns parameters of a simple pattern, made without temporaries.

  As large as a model that only just fits may be. Scales of norms are 1.

  Args:
    params: Shapes.
  """

  def one(x):
    if len(x.shape) < 2:
      return jnp.ones(x.shape, x.dtype)
    return _hashed(x.shape, x.dtype)

  return jax.tree.map(one, params)


def trained(state: kd.train.TrainState) -> kd.train.TrainState:
  """Returns a state as after training: zeros of the start are easy to keep."""

  def one(x):
    full = x.ndim > 1 and not np.any(x)
    return jax.device_put(_hashed(x.shape, x.dtype), x.sharding) if full else x

  base, lora = peft.split_params(state.params)
  return state.replace(
      params=peft.merge_params(base, jax.tree.map(one, lora)),
      opt_state=jax.tree.map(one, state.opt_state),
  )


def _hashed(shape, dtype):
  """Uniform numbers of at most 0.05, of the place of each entry."""

  @jax.jit
  def make():
    bits = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
      index = jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
      bits = (bits ^ index) * jnp.uint32(0x9E3779B1)
      bits ^= bits >> 15
    unit = (bits >> 8).astype(jnp.float32) / 2**23 - 1
    return (0.05 * unit).astype(dtype)

  return make()


def batches(size: sizes.Size) -> dict[str, Any]:
  """Returns one batch."""
  rows = [RandomTokens(size)[i] for i in range(size.batch)]
  return jax.tree.map(lambda *x: jnp.asarray(np.stack(x)), *rows)
