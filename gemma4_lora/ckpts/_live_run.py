"""A run that trains: it owns its workdir, and stops at a signal."""

from collections.abc import Callable
import threading
import time
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
from kauldron.checkpoints import lazy_checkpoint_manager
import numpy as np

from gemma4_lora.host import _live_owner
from gemma4_lora.host import _paths
from gemma4_lora.host import _stop_signals
from gemma4_lora.host.folders import _in_the_way
from gemma4_lora.host.ranges import _bucket_reads

# For how many times as long as a read is tried again a run waits for a bucket.
_PATIENCE = 5
_MOST_BYTES = 1024  # The longest message from one host to the others, in bytes.

# Runs of this process that have not ended, by workdir: training ones, and those
# whose cell was interrupted or failed.
_RUNS: dict[str, 'LiveRun'] = {}


class LiveRun:
  """A run of this process, from before its first step until it ends.

  Attributes:
    first_step: The step at which it started or resumed.
    saved_step: The last step that is known to be complete on disk.
  """

  def __init__(self, workdir: epath.Path, *, who: str):
    self.first_step = 0
    self.saved_step: int | None = None
    self._workdir = workdir
    self._who = who
    self._went_on = time.monotonic()  # When it was last known to.
    self._ownership: _live_owner.Ownership | None = None
    self._thread: threading.Thread | None = None
    self._wait: Callable[[], None] | None = None
    self._sync_points = _SyncPoints()

  @property
  def is_training(self) -> bool:
    return self._wait is not None

  @property
  def saved(self) -> str:
    """What is saved, in a sentence."""
    step = 'none' if self.saved_step is None else f'step {self.saved_step}'
    return (
        f'The last complete checkpoint in {self._workdir}, as far as this run'
        f' knows: {step}. The same command goes on from there.'
    )

  @property
  def silence(self) -> str | None:
    """Says that the bucket is silent, and the run waits for it; None if not.

    A run that only computes goes on: the network may be back at its next save.
    """
    owner = self._ownership
    if owner is None or _paths.is_local(self._workdir):
      return None
    limit = _PATIENCE * _bucket_reads.timeout_s() + 2 * _live_owner.BEAT_SECONDS
    waited = time.monotonic() - max(self._went_on, owner.answered)
    if not self.is_training or waited < limit:
      return None
    return (
        f'{self._who}: {self._workdir} has not answered for {waited:.0f} s'
        f' ({_bucket_reads.TIMEOUT}), and the run waits for it. Look at the'
        f' network, and at https://status.cloud.google.com. {self.saved}'
    )

  def take(self, *, is_primary: bool) -> None:
    """Takes the workdir; one process does it for all hosts.

    Args:
      is_primary: Whether this process does it.

    Raises:
      OwnedError: Another live run has it.
    """
    problem = ''
    if is_primary:
      try:
        path = self._workdir / _in_the_way.OWNER
        self._ownership = _live_owner.Ownership.take(
            path, on_wait=_stop_signals.tell
        )
      except _live_owner.OwnedError as e:
        problem = self._explain(e)
      except Exception as e:  # pylint: disable=broad-exception-caught
        if jax.process_count() == 1:
          raise
        problem = f'{self._who}: cannot write to {self._workdir}: {e}'
    problem = _from_primary(problem, is_primary=is_primary)
    if problem:
      raise _live_owner.OwnedError(problem)

  def train(self, wait: Callable[[], None], *, first_step: int) -> None:
    """Listens to signals from here on.

    Args:
      wait: Waits for saves that this run has begun.
      first_step: The step at which it starts or resumes.
    """
    self._wait = wait
    self._went_on = time.monotonic()
    self._thread = threading.current_thread()
    self.first_step = first_step
    _RUNS[str(self._workdir)] = self
    signals = _stop_signals.of_process()
    signals.install(several_hosts=jax.process_count() > 1)
    signals.is_training = True

  def asked_to_stop(self) -> str | None:
    """Returns the signal that asks for it.

    With several hosts, all call it equally often, and get the same answer at the
    same call.
    """
    if not self.is_training:
      return None
    self._went_on = time.monotonic()
    if jax.process_count() == 1:
      return _stop_signals.of_process().received
    return 'Preempted' if self._sync_points.reached() else None

  def meet(self) -> None:
    """Makes up for calls of `asked_to_stop` that not all hosts made.

    After an evaluation, since an evaluator may run on one host alone. All hosts
    call it, and wait for each other.
    """
    if self.is_training and jax.process_count() > 1:
      self._sync_points.meet()

  def check_owner(self) -> None:
    """Raises before a save if another run has taken the workdir.

    Raises:
      OwnedError: It has.
    """
    if self._ownership is not None:
      try:
        self._ownership.check()
      except _live_owner.OwnedError as e:
        raise _live_owner.OwnedError(self._explain(e)) from e

  def end(self) -> None:
    """Releases the workdir and the signals; a second call does nothing."""
    if self.is_training:
      self._wait = None
      signals = _stop_signals.of_process()
      signals.is_training = False
      signals.remove()
    if _RUNS.get(str(self._workdir)) is self:
      del _RUNS[str(self._workdir)]
    if self._ownership is not None:
      self._ownership.release()
      self._ownership = None

  def settle(self) -> None:
    """Ends a run that was interrupted, once its pending saves are done.

    Raises:
      OwnedError: It trains still, in another thread.
    """
    thread = self._thread
    if thread is not None and thread is not threading.current_thread():
      if thread.is_alive():
        other = _live_owner.OwnedError(f'thread {thread.name} of this process')
        raise _live_owner.OwnedError(self._explain(other))
    try:
      if self._wait is not None:
        self._wait()
    except Exception:  # pylint: disable=broad-exception-caught
      logging.warning(
          'The last save in %s failed.', self._workdir, exc_info=True
      )
    self.end()

  def _explain(self, e: _live_owner.OwnedError) -> str:
    return (
        f'{self._who}: another run trains in {self._workdir}: {e}. Two runs'
        ' would overwrite each other. Wait for it, or end it; or give this run a'
        ' workdir of its own: --cfg.workdir=…. If it is a notebook that has'
        ' stopped training: trainer.checkpointer.close() there.'
    )


class _SyncPoints:
  """Asks jax, at one place after the other, whether the hosts stop there.

  jax takes a signal to one host as a notice to all. They agree on a number: one
  more than any of them has asked for. So each number is asked for, on each host.
  """

  def __init__(self) -> None:
    self._number = 0
    self._is_reached = False

  def reached(self) -> bool:
    """Returns whether they stop here, or have passed where they do."""
    if self._is_reached:
      return True
    self._number += 1
    try:
      self._is_reached = multihost_utils.reached_preemption_sync_point(
          self._number
      )
    except RuntimeError:  # `jax_enable_preemption_service` is off.
      return False
    return self._is_reached

  def meet(self) -> None:
    """Brings all hosts to the number of the one that is ahead."""
    own = np.array([self._number, self._is_reached], np.int32)
    with jax.transfer_guard('allow'):  # Kauldron's loop forbids it.
      hosts: Any = multihost_utils.process_allgather(own)
    ahead, is_reached = np.max(hosts, axis=0)
    while self._number < ahead and not self._is_reached:
      self.reached()
    self._number = int(ahead)
    self._is_reached = self._is_reached or bool(is_reached)


class CheckpointManager(lazy_checkpoint_manager.LazyCheckpointManager):
  """Kauldron's, whose Orbax leaves it to `LiveRun` to ask for sync points.

  Orbax would ask for the number of the step (`CheckpointManager.should_save` of
  orbax-checkpoint 0.12): the hosts would then agree on a number that `LiveRun`,
  which asks at each batch of an evaluation, has passed.
  """

  def _create_manager(self, state: Any) -> None:
    super()._create_manager(state)
    manager: Any = self._mgr
    manager.reached_preemption = lambda step: False


def saved() -> str | None:
  """Says what the run of this process has saved; None if there is no run."""
  run = next(reversed(_RUNS.values()), None)
  return None if run is None else run.saved


def silence() -> str | None:
  """Says that the bucket of this process's run is silent; None if it is not."""
  run = next(reversed(_RUNS.values()), None)
  return None if run is None else run.silence


def settle(workdir: epath.Path) -> bool:
  """Ends an interrupted run of this process in a workdir.

  Returns:
    Whether there was one. If so, the known list of steps may be old.

  Raises:
    OwnedError: It trains still, in another thread.
  """
  run = _RUNS.get(str(workdir))
  if run is None or jax.process_count() > 1:
    return False
  run.settle()
  return True


def _from_primary(text: str, *, is_primary: bool) -> str:
  """Returns the primary host's message on all hosts."""
  if jax.process_count() == 1:
    return text
  data = np.zeros(_MOST_BYTES, np.uint8)
  encoded = text.encode()[:_MOST_BYTES]
  data[: len(encoded)] = list(encoded)
  said: Any = multihost_utils.broadcast_one_to_all(data, is_source=is_primary)
  return bytes(np.asarray(said)).rstrip(b'\0').decode(errors='replace')
