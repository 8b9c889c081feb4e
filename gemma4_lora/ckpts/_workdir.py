"""The folder of a run's checkpoints, on a disk or in a bucket."""

from collections.abc import Iterator
import contextlib
import dataclasses
from typing import Any

from etils import epath
from etils import epy
import jax
from kauldron import kd

from gemma4_lora import host
from gemma4_lora.ckpts.sources import _integrity
from gemma4_lora.ckpts.sources import _locate
from gemma4_lora.host import _paths
from gemma4_lora.host import _storage_errors
from gemma4_lora.host.files import _regular
from gemma4_lora.host.folders import _in_the_way
from gemma4_lora.host.folders import _upload

# A step is deleted by renaming it into this folder first: a run that is killed
# in between leaves no partial checkpoint under the name of a complete one. In a
# bucket, nothing is renamed.
_DELETED = 'deleted'
_CHECKPOINTS = 'checkpoints'
_TMP = '.orbax-checkpoint-tmp'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workdir:
  """The checkpoints of a run.

  Attributes:
    path: The workdir.
    can_clean: Whether this process removes leftovers. One process does it for
      all hosts; one that only reads does not.
  """

  path: epath.Path
  can_clean: bool

  @property
  def folder(self) -> epath.Path:
    return self.path / _CHECKPOINTS

  @property
  def in_bucket(self) -> bool:
    return not host.is_local(self.path)

  def options(self, options: Any) -> Any:
    """Returns Orbax's options for such a folder.

    Args:
      options: Those of Kauldron's checkpointer.
    """
    options = dataclasses.replace(options, todelete_subdir=_DELETED)
    if self.in_bucket:
      file_options = dataclasses.replace(
          options.file_options, path_permission_mode=None
      )
      options = dataclasses.replace(options, file_options=file_options)
    return options

  def probe(self, *, who: str) -> None:
    """Raises if nothing can be written.

    Args:
      who: The checkpointer, for messages.

    Raises:
      ValueError: A save there could not be restored.
      OSError: It cannot be written, or an error of the storage.
    """
    _paths.check_orbax_can_write(self.path, who=who)
    _in_the_way.check_length(self.path, who=who)
    _in_the_way.check_no_file(self.folder, who=who)
    with self.explained(who=who):
      self.folder.mkdir(parents=True, exist_ok=True)
      file = self.folder / f'.probe_{jax.process_index()}'
      file.touch()
      file.unlink()

  def is_complete(self, step: int) -> bool:
    """Whether a step was saved to its end."""
    return _locate.is_committed(self.step(step))

  def step(self, step: int) -> epath.Path:
    """Returns the folder of a step."""
    return self.folder / f'ckpt_{step}'

  def checked_arrays(self, step: int, *, who: str) -> epath.Path | None:
    """Returns the folder of a step's arrays; None if it has none of Orbax's.

    Args:
      step: The step.
      who: The checkpointer, for messages.

    Raises:
      ValueError: On a disk, a file of it is missing or shorter than its data.
    """
    for folder in _upload.children(self.step(step)):
      if (folder / _locate.METADATA).exists():
        if not self.in_bucket:
          _integrity.check(folder, who=who)
        return folder
    return None

  def check_kinds(self, *, who: str) -> None:
    """Raises if a file is a pipe or a device, for which Orbax would wait.

    Args:
      who: The checkpointer, for messages.

    Raises:
      ValueError: One is.
    """
    # Another process may delete a step meanwhile.
    with contextlib.suppress(FileNotFoundError):
      _regular.check_below(self.folder, who=who)

  def steps(self) -> list[int]:
    """Returns the steps that have a folder."""
    names = [x.name for x in self.folder.glob('ckpt_*')]
    return sorted(int(n[5:]) for n in names if n[5:].isdigit())

  def remove_deleted(self) -> None:
    """Removes folders that an earlier save has replaced."""
    if self.can_clean and not self.in_bucket:
      for path in self.folder.glob(_DELETED):
        path.rmtree()

  def remove_unfinished(self) -> None:
    """Removes leftovers of a killed run; no live run may have the workdir."""
    if not self.can_clean:
      return
    for path in self.folder.glob(f'*{_TMP}*'):
      path.rmtree()
    if self.in_bucket:
      for step in self.steps():
        if not self.is_complete(step):
          self.step(step).rmtree()

  @contextlib.contextmanager
  def explained(self, *, who: str, saved: int | None = None) -> Iterator[None]:
    """Explains what a failed write means for the run.

    Args:
      who: The checkpointer.
      saved: The last step that this run knows to be complete, used if the
        storage does not answer.
    """
    try:
      yield
    except Exception as e:  # pylint: disable=broad-exception-caught
      then = (
          f' The last complete checkpoint there: {self._last(saved)}. The next'
          ' start goes on from it, and nothing needs cleaning. '
      )
      of_bucket = None
      if self.in_bucket:
        of_bucket = _storage_errors.explain(
            e, self.folder, who=who, doing='write'
        )
      if of_bucket is not None:
        raise type(of_bucket)(f'{of_bucket}{then}'.rstrip()) from e
      # Which no storage raises.
      is_bug = isinstance(e, (LookupError, TypeError, AttributeError))
      why = '.' if is_bug else ': is the disk full, or the workdir read-only?'
      epy.reraise(e, prefix=f'{who}: cannot save to {self.folder}{why}{then}')

  def _last(self, saved: int | None) -> str:
    """Returns the last step that is complete, for messages."""
    try:
      steps = [x for x in self.steps() if self.is_complete(x)]
    except Exception:  # pylint: disable=broad-exception-caught
      steps = [] if saved is None else [saved]
    return f'step {steps[-1]}' if steps else 'none'


def check_modes(checkpointer: Any, *, who: str) -> None:
  """Raises if Kauldron's own checkpointer cannot write its workdir.

  Kauldron gives its folders a mode, which etils refuses in a bucket
  (`kauldron/checkpoints/checkpointer.py` of 1.4.4, `etils/epath/backend.py` of
  1.14). Remove this when Kauldron sets modes only on disks.

  Args:
    checkpointer: The trainer's.
    who: What asks, for messages.

  Raises:
    ValueError: It cannot.
  """
  if not isinstance(checkpointer, kd.ckpts.Checkpointer):
    return
  workdir = host.path(checkpointer.workdir, who=who)
  if host.is_local(workdir):
    return
  options = checkpointer._ckpt_mgr.options  # pylint: disable=protected-access
  file_options = getattr(options, 'file_options', None)
  mode = getattr(file_options, 'path_permission_mode', None)
  if mode not in (None, 0o777):
    raise ValueError(
        f'{who}: {type(checkpointer).__name__} of Kauldron cannot save to the'
        f' bucket {workdir}: it sets the mode {mode:o}, and folders there have'
        ' none. Use checkpointer=g4.ckpts.Checkpointer(…), which has the same'
        ' options, or g4.ckpts.LoRACheckpointer(…).'
    )
