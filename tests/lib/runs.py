"""Trainers that save LoRA, and states of theirs that no step was taken for."""

from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd
import numpy as np
import optax

from gemma4_lora import _trees
from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params
from tests.lib import training


def trainer(
    workdir: Any,
    released: Any = None,
    *,
    lora: dict[str, Any] | None = None,
    base: Any = None,
    optimizer: Any = None,
    num_train_steps: int = 0,
    options: dict[str, Any] | None = None,
    **kwargs: Any,
) -> kd.train.Trainer:
  """Returns a trainer with a `LoRACheckpointer`.

  Args:
    workdir: Where it saves.
    released: Path of the base; None for random base weights.
    lora: Settings of `g4.nn.LoRA`; two linears a layer, if it does not say.
    base: The model.
    optimizer: If not Adam on LoRA.
    num_train_steps: When it stops.
    options: Of the checkpointer.
    **kwargs: Of `training.make_trainer`.
  """
  model = g4.nn.LoRA(
      **({'rank': 4, 'alpha': 8.0, 'targets': ('q', 'down')} | (lora or {})),
      model=base or models.base(),
  )
  if released is not None:
    kwargs['init_transform'] = g4.ckpts.SkipLoRA4(
        wrapped=g4.ckpts.PartialLoad(path=released), model=model
    )
  options = {'save_interval_steps': 1} | (options or {})
  made = training.make_trainer(
      model,
      workdir,
      num_train_steps=num_train_steps,
      checkpointer=g4.ckpts.LoRACheckpointer(**options),
      **kwargs,
  )
  return made.replace(optimizer=optimizer) if optimizer else made


def state(
    trainer: kd.train.Trainer, *, seed: int, params: Any = None
) -> kd.train.TrainState:
  """Returns a state of random values, its optimizer's moments included.

  Args:
    trainer: Gives model and optimizer.
    seed: Of the values.
    params: Those of the base, if not random.
  """
  model = trainer.model
  values = random_params.make(model, seed=seed)
  if params is not None:
    values = _trees.merge(params, _trees.split_lora(values)[1])
  if model.init_lora_weights != 'default' and seed == 0:
    values = random_params.pending(values)
  values = jax.device_put(values, kd.sharding.REPLICATED)
  rng = np.random.default_rng(seed + 100)
  # In NumPy: jax would compile a program for each shape.
  opt_state = jax.tree.map(
      lambda x: jax.device_put(
          (rng.integers(1, 99, x.shape) / 7).astype(x.dtype)
          if jnp.issubdtype(x.dtype, jnp.floating)
          else np.asarray(seed, x.dtype),
          kd.sharding.REPLICATED,
      ),
      jax.eval_shape(trainer.optimizer.init, values),
  )
  step = jax.device_put(jnp.asarray(seed), kd.sharding.REPLICATED)
  return kd.train.TrainState(
      step=step, params=values, opt_state=opt_state, collections={}
  )


def saved_leaves(state: Any) -> dict[str, np.ndarray]:
  """What must come back from disk, by path."""
  return {
      _trees.join(path): np.asarray(leaf)
      for path, leaf in _trees.flatten(state).items()
      if path[0] != 'params' or _trees.is_lora(path)
  }


def partial(optimizer: optax.GradientTransformation) -> Any:
  """Returns the optimizer on LoRA alone."""
  return kd.optim.partial_updates(optimizer, mask=kd.optim.select('lora'))
