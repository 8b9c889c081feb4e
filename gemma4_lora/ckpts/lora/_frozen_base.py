"""The frozen base of a run: restores it, and checks that it does not change."""

import dataclasses
from typing import Any
import weakref

import jax
import jax.numpy as jnp
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _fresh_lora
from gemma4_lora.optim import _trained


class FrozenBase:
  """Restores the base of a run, and remembers it."""

  def __init__(self, trainer: kd.train.Trainer, *, who: str):
    """Creates it.

    Args:
      trainer: The trainer, with model, optimizer and init_transform.
      who: What asks, for messages.
    """
    self._trainstep = trainer.trainstep
    self._who = who
    self._fingerprint: dict[str, Any] | None = None
    self._arrays: dict[_trees.Path, weakref.ref] = {}

  def check_optimizer(self, state: kd.train.TrainState) -> None:
    """Raises if the optimizer changes leaves outside LoRA.

    Raises:
      ValueError: It does, or it changes nothing, or there is no LoRA.
    """
    if not any(map(_trees.is_lora, _trees.flatten(state.params))):
      raise ValueError(
          f'{self._who}: the model has no LoRA leaf: nothing would be saved.'
          ' Use g4.nn.LoRA(rank=…, model=…), or kd.ckpts.Checkpointer to'
          ' fine-tune all of the model.'
      )
    optimizer = self._trainstep.optimizer
    if optimizer is None or state.opt_state is None:
      return
    trained = _trained.trained(optimizer, state.params, state.opt_state)
    if not trained:
      raise ValueError(_trained.explain_nothing(state.params, who=self._who))
    paths = [_trees.join(x) for x in trained if not _trees.is_lora(x)]
    if paths:
      raise ValueError(
          f'{self._who}: the optimizer changes {len(paths)} leaves of the base'
          f' model, of which none is saved: {", ".join(paths[:3])}, …. Train'
          ' LoRA alone: optimizer=kd.optim.partial_updates(…,'
          ' mask=kd.optim.select("lora")); or save all of the model:'
          ' checkpointer=kd.ckpts.Checkpointer(…).'
      )

  def describe(
      self, state: kd.train.TrainState, *, content: bool = True
  ) -> dict[str, Any]:
    """Returns the fingerprint of a state."""
    return _fingerprint.describe(
        self._trainstep.model, state.params, content=content
    )

  def remember(self, state: kd.train.TrainState) -> dict[str, Any]:
    """Remembers the state's base as the run's; returns its fingerprint."""
    self._fingerprint = self.describe(state)
    self._arrays = {k: weakref.ref(x) for k, x in _base(state).items()}
    return self._fingerprint

  def fingerprint(self, state: kd.train.TrainState) -> dict[str, Any]:
    """Returns the fingerprint of a state that is to be saved.

    Raises:
      ValueError: The base has changed since the start.
    """
    if self._fingerprint is None:  # Saved by hand, without a restore.
      self.check_optimizer(state)
      return self.remember(state)
    now = self.describe(state)
    old, new = (x['base']['checksums'] for x in (self._fingerprint, now))
    paths = [path for path in {**old, **new} if old.get(path) != new.get(path)]
    if paths:
      raise ValueError(
          f'{self._who}: {len(paths)} leaves of the base model changed since'
          f' the start, of which none is saved: {", ".join(paths[:3])}, …. Save'
          ' all of the model: checkpointer=kd.ckpts.Checkpointer(…).'
      )
    return now

  def restore(
      self, state: kd.train.TrainState, *, donate: bool
  ) -> tuple[kd.train.TrainState, dict[str, Any]]:
    """Returns a state with the base restored, and its fingerprint.

    An evaluation of many checkpoints passes the same arrays again; these are
    not read twice.

    Args:
      state: What `kd.train.TrainStep.init` makes without transforms, or what
        this function returned; arrays or shapes.
      donate: Whether its arrays may be freed.

    Raises:
      ValueError: A leaf of the base gets no value.
    """
    if self._fingerprint is not None and self._is_known(state):
      return state, self._fingerprint
    if not donate:
      # The transform frees what it replaces.
      params = jax.tree.map(jnp.copy, state.params)
      state = dataclasses.replace(state, params=params)
    shardings = {k: x.sharding for k, x in _base(state).items()}
    # As in `kd.train.TrainStep.init`, for leaves that depend on the base's
    # origin.
    transform = self._trainstep.init_transform
    state = _fresh_lora.with_fresh_lora(state, self._trainstep.model)
    state = transform.transform(state)
    if state.opt_state is not None:
      state = transform.transform_after_optimizer(state)
    for path, leaf in _base(state).items():
      if isinstance(leaf, jax.ShapeDtypeStruct):
        raise ValueError(
            f'{self._who}: {_trees.join(path)} has no value (ShapeDtypeStruct),'
            ' and init_transform= gives it none: restore into'
            ' trainer.init_state(skip_transforms=True).'
        )
    state = _with_shardings(state, shardings)
    return state, self.remember(state)

  def _is_known(self, state: kd.train.TrainState) -> bool:
    """Whether the state has the same arrays that we remember."""
    leaves = _base(state)
    return leaves.keys() == self._arrays.keys() and all(
        self._arrays[path]() is leaf and not leaf.is_deleted()
        for path, leaf in leaves.items()
    )


def _base(state: kd.train.TrainState) -> dict[_trees.Path, Any]:
  leaves = _trees.flatten(state.params)
  return {path: x for path, x in leaves.items() if not _trees.is_lora(path)}


def _with_shardings(
    state: kd.train.TrainState, shardings: dict[_trees.Path, Any]
) -> kd.train.TrainState:
  """Returns the state with its shardings, which a transform may drop."""

  def put(keys, leaf):
    sharding = shardings.get(_trees.key_path(keys))
    if sharding is None or leaf.sharding.is_equivalent_to(sharding, leaf.ndim):
      return leaf
    return jax.device_put(leaf, sharding)

  params = jax.tree_util.tree_map_with_path(put, state.params)
  return dataclasses.replace(state, params=params)
