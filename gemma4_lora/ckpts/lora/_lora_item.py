"""A train state without its base, as an item of a Kauldron checkpoint."""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import os
from typing import Any

from absl import logging
from etils import epath
import flax
import jax
from kauldron import kd
import numpy as np
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _bundles
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _fingerprint_item
from gemma4_lora.ckpts.lora import _small_items
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host import _devices
from gemma4_lora.host import _storage_errors

_WHO = 'LoRACheckpointer'
_DEFAULT = 'default'
_ROOT = 'params'
_OPT_STATE = 'opt_state'
_INDEX = 'index'
_DIGESTS = 'digests'
_ITEMS = 'items'
_SHOWN = 8
_STEP = ('step',)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoRAItem(kd.ckpts.items.CheckpointItem):
  """The saved item: the train state without the base, and a fingerprint.

  Attributes:
    item: A `kd.train.TrainState`, or a named tuple of items with one in it.
    fingerprint: The fingerprint to save; or the saved one, to restore.
    where: Where it was saved, to restore: for messages.
  """

  item: Any
  fingerprint: _fingerprint.Fingerprint
  where: str = ''

  @property
  def leaves(self) -> dict[_trees.Path, Any]:
    """The leaves of the train state that are saved: all but the base."""
    return {
        path: leaf
        for path, leaf in _trees.flatten(self._state).items()
        if path[0] != _ROOT or _trees.is_lora(path)
    }

  def check(self, *, who: str, where: str) -> None:
    """Checks that the saved leaves are those of the state, except for values.

    Args:
      who: What asks, for messages.
      where: The saved step, for messages.

    Raises:
      ValueError: They differ, as after a change of the optimizer; or another
        item of the step is damaged.
    """
    names = _items(self.item.__kd_ocp_restore_args__())
    saved = self.fingerprint.get(_ITEMS, {})
    lacking = [x for x in names if not (epath.Path(where) / x).exists()]
    if lacking:
      raise ValueError(
          f'{who}: {where} is a part of a checkpoint: it lacks'
          f' {" and ".join(lacking)}. Copy that step again; or remove its folder,'
          ' to go on from the step before.'
      )
    _small_items.check(epath.Path(where), saved, names)
    old = _bundles.specs(self.fingerprint[_INDEX])
    new = {k: (str(x.dtype), tuple(x.shape)) for k, x in self.leaves.items()}
    paths = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    counts = [k for k in paths if _is_count(k, {**old, **new}[k])]
    if counts:
      logging.info(
          '%s: a schedule came or went: %s.',
          who,
          ', '.join(map(_trees.join, counts)),
      )
    paths = [k for k in paths if k not in counts]
    if paths:
      shown = '\n'.join(
          f'  {_trees.join(k)}: checkpoint {_spec(old.get(k))}, config'
          f' {_spec(new.get(k))}'
          for k in paths[:_SHOWN]
      )
      raise ValueError(
          f'{who}: {len(paths)} leaves of the train state are not those of'
          f' {where}, the first:\n{shown}\nRates and schedules may change, the'
          ' kind of optimizer=, or what it trains, may not: set it back, or give'
          ' the run a workdir of its own: --cfg.workdir=….'
      )

  def __kd_ocp_handlers__(self) -> Any:
    handlers = self.item.__kd_ocp_handlers__()
    if not isinstance(handlers, Mapping):
      handlers = {_DEFAULT: handlers}
    return {
        **handlers,
        self._key: ocp.PyTreeCheckpointHandler(),
        _fingerprint.ITEM: ocp.JsonCheckpointHandler(),
    }

  def __kd_ocp_save_args__(self) -> ocp.args.CheckpointArgs:
    arrays, index = _bundles.bundle(self.leaves)
    digests = _bundles.digests(arrays, index)
    args = _items(self.item.__kd_ocp_save_args__())
    said = {
        **self.fingerprint,
        _INDEX: index,
        _ITEMS: _small_items.digests(args),
    }
    args[self._key] = _bundles.save_args(arrays, index)
    args[_fingerprint.ITEM] = _fingerprint_item.save_args(
        lambda: _fingerprint.to_write({**said, _DIGESTS: digests()})
    )
    return ocp.args.Composite(**args)

  def __kd_ocp_restore_args__(self) -> ocp.args.CheckpointArgs:
    args = _items(self.item.__kd_ocp_restore_args__())
    args[self._key] = _bundles.restore_args(
        self.fingerprint[_INDEX], self.leaves
    )
    return ocp.args.Composite(**args)

  def __kd_ocp_restore_post__(self, value: Any) -> Any:
    parts = dict(value.items())
    check = _start_check(
        parts[self._key], self.fingerprint, who=_WHO, where=self.where
    )
    new = _bundles.unbundle(parts[self._key], self.fingerprint[_INDEX])

    specs = _bundles.specs(self.fingerprint[_INDEX])
    counts = [new[k] for k in new if _is_count(k, specs[k])]
    saved = self.leaves.keys()

    def place(keys, leaf):
      path = _trees.key_path(keys)
      if path in new:
        return _devices.place(new[path], leaf)
      if path in saved:  # The count of a schedule that is new.
        count = counts[0] if counts else new[_STEP]
        return _devices.place(np.asarray(count), leaf)
      return leaf  # A leaf of the base.

    state = jax.tree_util.tree_map_with_path(place, self._state)
    check()
    if self.item is self._state:
      return state
    parts[self._key] = state
    return self.item.__kd_ocp_restore_post__(ocp.args.Composite(**parts))

  @property
  def _state(self) -> kd.train.TrainState:
    state = train_state(self.item)
    assert state is not None
    return state

  @property
  def _key(self) -> str:
    """Orbax's name of the train state."""
    if self.item is self._state:
      return _DEFAULT
    names = self.item._fields
    name = next(n for n in names if getattr(self.item, n) is self._state)
    return _DEFAULT if name == self.item.DEFAULT_ITEM else name


def train_state(item: Any) -> kd.train.TrainState | None:
  """Returns the train state that an item is or has, if any."""
  if isinstance(item, kd.train.TrainState):
    return item
  if not isinstance(item, kd.ckpts.items.TopLevelCheckpointItem):
    return None
  values = (getattr(item, name) for name in getattr(item, '_fields', ()))
  return next((x for x in values if isinstance(x, kd.train.TrainState)), None)


def with_train_state(item: Any, state: kd.train.TrainState) -> Any:
  """Returns an item with its state replaced."""
  old = train_state(item)
  if item is old:
    return state
  name = next(n for n in item._fields if getattr(item, n) is old)
  return item._replace(**{name: state})


def read_lora(
    path: epath.PathLike, *, step: int = -1, who: str
) -> tuple[dict[str, Any], _fingerprint.Fingerprint | None]:
  """Reads the LoRA leaves of a run, and what they were trained on.

  Args:
    path: A Kauldron workdir or a folder in it, see `_locate.locate`.
    step: Which checkpoint of a workdir; -1 for the last.
    who: The transform that asks, for messages.

  Returns:
    Nested params of LoRA leaves alone, on the host; and the fingerprint,
    `None` where no `LoRACheckpointer` wrote the checkpoint.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: It cannot be read, or has no LoRA leaf.
  """
  # The caller decides about NaN in LoRA.
  source = _open.open_source(path, step=step, who=who, nan=None)
  if not isinstance(source, _open.OrbaxSource):
    raise ValueError(
        f'{who}: {source.path} is one of Hugging Face, not a run: LoRA of PEFT is'
        ' loaded by g4.hf.load_peft.'
    )
  fingerprint = _fingerprint.read_beside(source.path)
  if fingerprint is not None:
    _fingerprint.check_format(fingerprint, who=who, where=str(source.path))
    index = {
        name: x
        for name, x in fingerprint[_INDEX].items()
        if x[1][0][0][0] == _ROOT
    }
    arrays = _arrays(source, set(index), who=who)
    if jax.process_count() == 1:  # Each process reads all here.
      where = os.fspath(source.path.parent)
      _start_check(arrays, fingerprint, who=who, where=where)()
    try:
      leaves = _bundles.unbundle(arrays, index)
    except ValueError as e:
      raise ValueError(f'{who}: {source.path}: {e}') from e
  else:
    paths = {
        _trees.join(x.key): x.path
        for x in source.leaves.values()
        if x.path[0] == _ROOT and _trees.is_lora(x.path)
    }
    arrays = _arrays(source, set(paths), who=who)
    leaves = {paths[name]: array for name, array in arrays.items()}
  nested = flax.traverse_util.unflatten_dict(leaves)
  return nested[_ROOT], fingerprint


def _start_check(
    arrays: Mapping[str, Any],
    fingerprint: _fingerprint.Fingerprint,
    *,
    who: str,
    where: str,
) -> Callable[[], None]:
  """Returns a function that raises if arrays differ from those saved."""
  saved = fingerprint.get(_DIGESTS, {})
  if not saved:
    return lambda: None
  digests = _bundles.digests(arrays, fingerprint[_INDEX])
  return lambda: _bundles.check(digests(), saved, who=who, where=where)


def _arrays(
    source: _open.Source, names: set[str], *, who: str
) -> dict[str, np.ndarray]:
  """Reads arrays by their names in the file."""
  tree = source.tree if isinstance(source, _open.OrbaxSource) else {}
  keys = {k for k in _trees.flatten(tree) if _trees.join(k) in names}
  if not keys:
    raise ValueError(f'{who}: no LoRA leaf in {source.path}.')
  source.check(keys, who=who)
  args = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in keys}
  with _storage_errors.explained(source.path, who=who):
    return {_trees.join(k): x for k, x in source.read(args).items()}


def _items(args: ocp.args.CheckpointArgs) -> dict[str, Any]:
  if isinstance(args, ocp.args.Composite):
    return dict(args.items())
  return {_DEFAULT: args}


def _is_count(path: _trees.Path, spec: tuple[str, tuple[int, ...]]) -> bool:
  """Whether a leaf is a number of updates, as `optax` keeps for schedules."""
  is_integer = np.issubdtype(np.dtype(spec[0]), np.integer)
  return (
      path[0] == _OPT_STATE
      and path[-1] == 'count'
      and is_integer
      and not spec[1]
  )


def _spec(spec: tuple[str, tuple[int, ...]] | None) -> str:
  return f'{spec[0]}{list(spec[1])}' if spec else 'none'
