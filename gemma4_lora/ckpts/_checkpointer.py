"""Kauldron's checkpointer, for any workdir: a disk or a bucket."""

import contextlib
import dataclasses
import functools
from typing import Any
from typing import NoReturn
from typing import Self

from absl import logging
import jax
from kauldron import kd
from kauldron.utils import config_util

from gemma4_lora import host
from gemma4_lora.ckpts import _best_metric
from gemma4_lora.ckpts import _good_state
from gemma4_lora.ckpts import _live_run
from gemma4_lora.ckpts import _needs_logits
from gemma4_lora.ckpts import _resumed
from gemma4_lora.ckpts import _stoppable
from gemma4_lora.ckpts import _workdir
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.ckpts.sources import _bounded
from gemma4_lora.ckpts.sources import _integrity
from gemma4_lora.data import _ended
from gemma4_lora.host import _live_owner
from gemma4_lora.host import _stop_signals
from gemma4_lora.host import _storage_errors


@dataclasses.dataclass(frozen=True, eq=True, kw_only=True)
class Checkpointer(kd.ckpts.Checkpointer):
  """A `kd.ckpts.Checkpointer` that also saves to buckets.

  ```python
  checkpointer = g4.ckpts.Checkpointer(save_interval_steps=500)
  ```

  It has the options of `kd.ckpts.Checkpointer`, and writes and reads the same
  checkpoints: the whole train state, base included. `g4.ckpts.LoRACheckpointer`
  leaves the frozen base out.

  A workdir belongs to one run: a second run in it is an error while the first
  one lives. A state with NaN or infinite values is not saved, so that the last
  good one stays. At SIGTERM or SIGINT, a run saves its last step and ends with
  exit status 75. A second SIGINT ends it at once. On several hosts, a SIGTERM
  to one ends all, at one step.

  Attributes:
    base_cfg: The trainer (set automatically).

  Raises:
    OSError: The workdir cannot be written, or the disk is full.
    OwnedError: Another live run has the workdir.
    FloatingPointError: The state to save has NaN or infinite values.
  """

  base_cfg: kd.train.Trainer = dataclasses.field(
      default=config_util.ROOT_CFG_REF, repr=False, compare=False
  )

  def update_from_root_cfg(self, root_cfg: kd.train.Trainer) -> Self:
    new = super().update_from_root_cfg(root_cfg)
    _best_metric.check_mode(new.best_mode, who=self._who)
    # Kauldron makes the folder before it asks for a checkpoint.
    host.path(new.workdir, who=f'{self._who}: workdir')
    return new

  def restore(
      self,
      state: Any,
      *,
      step: int = -1,
      noop_if_missing: bool = False,
      donate: bool = True,
  ) -> Any:
    """See `kd.ckpts.Checkpointer.restore`."""
    kwargs = dict(step=step, noop_if_missing=noop_if_missing, donate=donate)
    to_train = _state_of_run(state) if noop_if_missing else None
    if to_train is None or not self.create:
      return self._restore(state, **kwargs)
    try:
      self._start(to_train)
      state = self._restore(state, **kwargs)
      _stop_signals.of_process().check()
    except BaseException:
      self._run.end()
      raise
    self._say_resumed()
    to_train = _state_of_run(state)
    first_step = 0 if to_train is None else int(to_train.step)
    self._run.train(self._wait, first_step=first_step)
    self._run.saved_step = self._ckpt_mgr.latest_step()
    if isinstance(self.base_cfg, kd.train.Trainer):
      _stoppable.make(
          self.base_cfg.evals.values(),
          self._run.asked_to_stop,
          at_end=self._run.meet,
      )
    return _ended.explained(
        state,
        then=f' The same command goes on from the last checkpoint in'
        f' {self.workdir}.',
    )

  def should_save(self, step: int) -> bool:
    """See `kd.ckpts.Checkpointer.should_save`; also if a signal asks to stop."""
    wanted = super().should_save(step)
    signal = self._run.asked_to_stop()
    if wanted or not signal:
      return wanted
    last = self._ckpt_mgr.latest_step()
    if step > (self._run.first_step if last is None else last):
      return True  # `save` ends the run.
    self._end(signal, 'no step was done since', last or self._run.first_step)

  def save(
      self,
      state: Any,
      *,
      step: int,
      force: bool = False,
      metrics: Any = None,
  ) -> bool:
    """See `kd.ckpts.Checkpointer.save`.

    Raises:
      Stopped: A signal asked the run to stop, and the step is saved.
      OwnedError: Another run has taken the workdir.
      FloatingPointError: The state has NaN or infinite values.
    """
    item = self._to_save(state)
    signal = self._run.asked_to_stop()
    # Kauldron's `save` would log a failure and go on.
    self._wait()
    self._run.check_owner()
    problem = _good_state.problem(state)
    if problem and not signal and self._goes_on_regardless:
      logging.warning('%s: step %d is not saved: %s', self._who, step, problem)
      return False
    if problem:
      raise FloatingPointError(
          f'{self._who}: step {step} is not saved: {problem}'
          f' {self._last_saved()}'
      )
    # A step between two evaluations (at a signal) or before the first one
    # cannot be compared: it is kept.
    metrics = _best_metric.comparable(
        metrics, self.best_metric_path, who=self._who
    )
    with self._explained():
      saved = super().save(
          item, step=step, force=force or bool(signal), metrics=metrics
      )
    if signal:
      self._end(signal, 'saved', step)
    return saved

  def wait_until_finished(self) -> None:
    """Waits for saves and releases the workdir. A run calls it at its end."""
    self._wait()
    self._run.end()

  def close(self) -> None:
    with self._explained():
      super().close()
    self._files.remove_deleted()
    self._run.end()

  @property
  def latest_step(self) -> int | None:
    if _live_run.settle(self._files.path):
      vars(self).pop('_ckpt_mgr', None)  # It has an old list of steps.
    elif '_ckpt_mgr' in vars(self) and not self._run.is_training:
      self.reload()  # Another trainer may have gone on meanwhile.
    with self._explained():  # It makes the folder.
      return super().latest_step

  @functools.cached_property
  def _ckpt_mgr(self) -> Any:
    self._files.check_kinds(who=self._who)
    manager = super()._ckpt_mgr
    return _live_run.CheckpointManager(
        directory=manager.directory,
        options=self._files.options(manager.options),
        fast=manager.fast,
    )

  @functools.cached_property
  def _files(self) -> _workdir.Workdir:
    return _workdir.Workdir(
        path=host.path(self.workdir, who=self._who),
        can_clean=self.create and self._is_primary,
    )

  @property
  def _who(self) -> str:
    return type(self).__name__

  @functools.cached_property
  def _run(self) -> _live_run.LiveRun:
    return _live_run.LiveRun(self._files.path, who=self._who)

  @property
  def _is_primary(self) -> bool:
    primary = self.multiprocessing_options.primary_host
    return primary in (None, jax.process_index())

  def _explained(self) -> contextlib.AbstractContextManager[None]:
    return self._files.explained(who=self._who, saved=self._run.saved_step)

  @property
  def _has_base(self) -> bool:
    """Whether it saves the base as well."""
    return True

  def _to_save(self, state: Any) -> Any:
    """Returns the part of a state that is saved."""
    return state

  def _restore(self, state: Any, *, step: int, **kwargs: Any) -> Any:
    """Is `kd.ckpts.Checkpointer.restore`, of files that are all there.

    For as long as a bucket answers.
    """
    restore = functools.partial(super().restore, state, step=step, **kwargs)
    arrays = None
    if self._ckpt_mgr.latest_step() is not None:
      arrays = self._files.checked_arrays(
          self._absolute_step(step), who=self._who
      )
    if arrays is None:
      return restore()
    if not self._files.in_bucket:
      with _integrity.explained(arrays, who=self._who):
        return restore()
    with _storage_errors.explained(arrays, who=self._who):
      return _bounded.call(restore, directory=arrays)

  def _start(self, state: kd.train.TrainState) -> None:
    """Takes the workdir before the first step, and checks that it is writable.

    Args:
      state: To train.

    Raises:
      ValueError: A loss or a metric reads logits that training does not make,
        or there is no metric to compare checkpoints by.
    """
    del state
    if isinstance(self.base_cfg, kd.train.Trainer):
      # Kauldron's own train step does not check it.
      step = self.base_cfg.trainstep
      _needs_logits.check(step.model, step.aux, who=self._who)
      _best_metric.check(self, self.base_cfg, who=self._who)
    self._files.probe(who=self._who)
    self._run.take(is_primary=self._is_primary)
    self._files.remove_deleted()
    self._files.remove_unfinished()
    before = self._ckpt_mgr.latest_step()
    self.reload()
    if self._ckpt_mgr.latest_step() != before:
      raise _live_owner.OwnedError(
          f'{self._who}: another run saved to {self._files.folder} while this one'
          ' started. Start this one again.'
      )

  def _say_resumed(self) -> None:
    step = self._ckpt_mgr.latest_step()
    if step is None or not self._is_primary:
      return
    _stop_signals.tell(
        _resumed.text(
            self.base_cfg,
            self._files.step(step),
            step=step,
            has_base=self._has_base,
        )
    )

  def _wait(self) -> None:
    with self._explained():
      super().wait_until_finished()
    if '_ckpt_mgr' in vars(self):
      self._run.saved_step = self._ckpt_mgr.latest_step()
    self._files.remove_deleted()

  @property
  def _goes_on_regardless(self) -> bool:
    """Whether the user wants a run to go on after NaN."""
    if not isinstance(self.base_cfg, kd.train.Trainer):
      return False
    return not getattr(self.base_cfg.trainstep, 'max_bad_steps', True)

  def _last_saved(self) -> str:
    step = self._ckpt_mgr.latest_step()
    if step is None:
      return f'Nothing was saved in {self.workdir}.'
    return (
        f'The last checkpoint is from before: step {step} of {self.workdir}. The'
        ' same command goes on from it; try a smaller learning rate.'
    )

  def _end(self, signal: str, what: str, step: int) -> NoReturn:
    """Ends the run, once everything is on disk.

    Args:
      signal: The signal that stops the run.
      what: What happened to the step, for the message.
      step: The last that was saved.
    """
    self._wait()
    self._run.end()
    if isinstance(self.base_cfg, kd.train.Trainer):
      self.base_cfg.writer.flush()
    _stop_signals.stop(
        f'{signal}: {what} step {step} in {self.workdir}. The same command goes'
        ' on from it.',
        signal,
    )


def _state_of_run(item: Any) -> kd.train.TrainState | None:
  """Returns the train state among the items that a trainer restores."""
  state = _lora_item.train_state(item)
  return None if state is item else state
