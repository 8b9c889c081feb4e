"""Files of random values, made on first use."""

from collections.abc import Callable
import dataclasses
import hashlib
import os
import pathlib
import shutil

from etils import epath
from flax import linen as nn

from gemma4_lora.testing import _checkpoints
from gemma4_lora.testing import _tokenizer

_FOLDER = '~/.cache/gemma4_lora'
_FULL_VOCABULARY = 262144


@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomCheckpoint(os.PathLike):
  """Path of a checkpoint of random values, made when it is first opened.

  ```python
  gm.ckpts.LoadCheckpoint(
      path=g4.testing.RandomCheckpoint(model=g4.testing.Gemma4_31B()),
  )
  ```

  Attributes:
    model: Whose parameters.
    layout: Of the files: see `make_checkpoint`.
    folder: Where to keep it. Its name has a digest of the model's config.
  """

  model: nn.Module
  layout: _checkpoints.Layout = 'nested'
  folder: epath.PathLike = _FOLDER

  def __post_init__(self):
    _checkpoints.check_layout(self.layout, who='RandomCheckpoint')

  def __fspath__(self) -> str:
    return _made(self.path, self._make)

  @property
  def path(self) -> pathlib.Path:
    """Where the checkpoint is, or will be."""
    model = _checkpoints.base_model(self.model)
    text = f'{model.config} {model.text_only} {model.dtype}'
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f'random_{type(model).__name__.lower()}_{self.layout}_{digest}'
    return pathlib.Path(self.folder).expanduser() / name

  def _make(self, path: pathlib.Path) -> None:
    _checkpoints.make_checkpoint(self.model, path, layout=self.layout)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageVocabulary(os.PathLike):
  """Path of a tiny vocabulary with image tokens, made when it is first opened.

  Those of Gemma 4 are among its last ones: it has 262,144 entries, and fits
  `g4.testing.Gemma4_E2B_Images` and its like.

  Attributes:
    folder: Where to keep it.
  """

  folder: epath.PathLike = _FOLDER

  def __fspath__(self) -> str:
    return _made(self.path, self._make)

  @property
  def path(self) -> pathlib.Path:
    """Where the file is, or will be."""
    digest = hashlib.sha256(_tokenizer.MODEL_PATH.read_bytes()).hexdigest()
    folder = pathlib.Path(self.folder).expanduser()
    return folder / f'image_vocabulary_{digest[:12]}.model'

  def _make(self, path: pathlib.Path) -> None:
    _tokenizer.make_tokenizer(path, vocab_size=_FULL_VOCABULARY)


def _made(path: pathlib.Path, make: Callable[[pathlib.Path], None]) -> str:
  """Returns the path, after making what is there if nothing is.

  Nobody sees half of it: it is made beside, and renamed.
  """
  if path.exists():
    return os.fspath(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{os.getpid()}.{path.name}')
  make(partial)
  try:
    partial.rename(path)
  except OSError:  # Another process was first.
    if not path.exists():
      raise
    shutil.rmtree(partial)
  return os.fspath(path)
