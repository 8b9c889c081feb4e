"""Saves and resumes a run without its frozen base."""

import dataclasses
import functools
import os
from typing import Any
from typing import Self

from etils import epath
import jax
from kauldron import kd

from gemma4_lora.ckpts import _best_metric
from gemma4_lora.ckpts import _checkpointer
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _frozen_base
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.ckpts.sources import _locate

_WHO = 'LoRACheckpointer'


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class LoRACheckpointer(_checkpointer.Checkpointer):
  """Saves what training changes, and restores the base from its source.

  ```python
  checkpointer = g4.ckpts.LoRACheckpointer(save_interval_steps=500)
  ```

  A `g4.ckpts.Checkpointer`, with its options. In each `ckpt_N` folder are the
  LoRA leaves (those under a key `lora`), the optimizer's state, collections,
  step, timings, the position in the data, and a fingerprint of the base and of
  the LoRA settings.

  On resume, the config's own `init_transform=` restores the base, and the saved
  leaves are restored: the run goes on bit for bit. Another base, or other LoRA
  settings, is an error before the first step. Learning rate, schedules, dropout
  and the number of steps may change.

  Attributes:
    base_cfg: The trainer (set automatically).

  Raises:
    ValueError: The optimizer changes leaves outside of LoRA, or the base has
      changed since the start, or does not fit the checkpoint.
    OSError: The workdir cannot be written, or the disk is full.
    OwnedError: Another live run has the workdir.
    FloatingPointError: The state to save has NaN or infinite values.
  """

  def update_from_root_cfg(self, root_cfg: kd.train.Trainer) -> Self:
    _check_evals(root_cfg)
    return super().update_from_root_cfg(root_cfg)

  def _restore(  # pyrefly: ignore[bad-override]
      self,
      state: Any,
      *,
      step: int,
      noop_if_missing: bool,
      donate: bool,
  ) -> Any:
    """See `kd.ckpts.Checkpointer.restore`; restores the base as well."""
    train_state = _lora_item.train_state(state)
    if train_state is None:  # Whatever is on disk, unchanged.
      return super()._restore(
          state, step=step, noop_if_missing=noop_if_missing, donate=donate
      )
    self._assert_root_cfg_resolved()
    if self._ckpt_mgr.latest_step() is None:
      if noop_if_missing:
        self._base.remember(train_state)
        return state
      raise FileNotFoundError(
          f'{_WHO}: no checkpoint in {self._files.folder}. Use noop_if_missing=True'
          ' to go on with the state as it is.'
      )
    folder, saved = self._saved(self._absolute_step(step))
    item = _lora_item.LoRAItem(
        item=state, fingerprint=saved, where=os.fspath(folder)
    )
    check = functools.partial(
        _fingerprint.check, saved, who=_WHO, where=os.fspath(folder)
    )
    # First the checks that need no large read.
    check(self._base.describe(train_state, content=False))
    item.check(who=_WHO, where=os.fspath(folder))
    self._files.checked_arrays(self._absolute_step(step), who=_WHO)
    train_state, fingerprint = self._base.restore(train_state, donate=donate)
    check(fingerprint)
    item = dataclasses.replace(
        item, item=_lora_item.with_train_state(state, train_state)
    )
    if donate:
      jax.tree.map(_release, item.leaves)
    return super()._restore(
        item,
        step=self._absolute_step(step),
        noop_if_missing=False,
        donate=False,
    )

  def _start(self, state: kd.train.TrainState) -> None:
    self._base.check_optimizer(state)
    super()._start(state)

  def _to_save(self, state: Any) -> Any:
    train_state = _lora_item.train_state(state)
    if train_state is None:
      raise ValueError(
          f'{_WHO}: save takes the state of a trainer, got'
          f' {type(state).__name__}. Use kd.ckpts.Checkpointer for other items.'
      )
    self._assert_root_cfg_resolved()
    with jax.transfer_guard('allow'):
      fingerprint = self._base.fingerprint(train_state)
    return _lora_item.LoRAItem(item=state, fingerprint=fingerprint)

  @property
  def _has_base(self) -> bool:
    return False

  @functools.cached_property
  def _base(self) -> _frozen_base.FrozenBase:
    return _frozen_base.FrozenBase(self.base_cfg, who=_WHO)

  def _saved(self, step: int) -> tuple[epath.Path, _fingerprint.Fingerprint]:
    """Returns the folder of a step, and the fingerprint in it."""
    folder = self._files.step(step)
    if not self._files.is_complete(step):
      raise FileNotFoundError(
          f'{_WHO}: step={step} is not in {self._files.folder}. Available steps:'
          f' {sorted(self.all_steps)}.'
      )
    saved = _fingerprint.read(folder)
    if saved is None:
      _check_is_whole(folder)
      raise ValueError(
          f'{_WHO}: {folder} has no fingerprint: another checkpointer wrote it.'
          ' Go on with that one, as checkpointer=kd.ckpts.Checkpointer(…), or'
          ' give the run a workdir of its own: --cfg.workdir=….'
      )
    return folder, saved


def _check_is_whole(folder: epath.Path) -> None:
  """Raises for a step that an interrupted copy left incomplete."""
  there = sorted(folder.iterdir())
  if not any((x / _locate.METADATA).exists() for x in there):
    names = [x.name for x in there]
    raise ValueError(
        f'{_WHO}: {folder} is a part of a checkpoint, as an interrupted copy (of'
        f' rsync, say) leaves it: it has neither fingerprint nor arrays, only'
        f' {names}. Copy it again; or remove it, to go on from the step before.'
    )


def _check_evals(trainer: kd.train.Trainer) -> None:
  """Raises if Kauldron would read checkpoints without the checkpointer."""
  for name, evaluator in (trainer.evals or {}).items():
    if evaluator.discard_opt and isinstance(
        evaluator.run, _best_metric.STANDALONE
    ):
      raise ValueError(
          f'{_WHO}: evals.{name}.discard_opt=True: with it, Kauldron reads the'
          ' whole model from the checkpoint, which has LoRA alone. Drop it: the'
          " state of LoRA's optimizer is small."
      )


def _release(leaf: Any) -> None:
  if isinstance(leaf, jax.Array):
    leaf.delete()
