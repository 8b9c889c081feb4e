"""Files of random values, made on first use."""

from collections.abc import Callable
import dataclasses
import hashlib
import os
import pathlib

from etils import epath
from flax import linen as nn

from gemma4_lora import host
from gemma4_lora.host.folders import _leftovers
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
    model: The model of the parameters.
    layout: Layout of the files: see `make_checkpoint`.
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
  def path(self) -> epath.Path:
    """Where the checkpoint is, or will be."""
    model = _checkpoints.base_model(self.model)
    text = f'{model.config} {model.text_only} {model.dtype}'
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    name = f'random_{type(model).__name__.lower()}_{self.layout}_{digest}'
    folder = host.path(self.folder, who='RandomCheckpoint')
    return folder.expanduser() / name

  def _make(self, path: epath.Path) -> None:
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
  def path(self) -> epath.Path:
    """Where the file is, or will be."""
    digest = hashlib.sha256(_tokenizer.MODEL_PATH.read_bytes()).hexdigest()
    folder = host.path(self.folder, who='ImageVocabulary')
    return folder.expanduser() / f'image_vocabulary_{digest[:12]}.model'

  def _make(self, path: epath.Path) -> None:
    _tokenizer.make_tokenizer(path, vocab_size=_FULL_VOCABULARY)


def _made(path: epath.Path, make: Callable[[epath.Path], None]) -> str:
  """Returns the path, and makes the files if there are none.

  They are written beside the path and then renamed, so that no reader sees a part
  of them. In a bucket they become visible as a whole without that.
  """
  if path.exists():
    return os.fspath(path)
  if not host.is_local(path):
    make(path)
    return os.fspath(path)
  place = pathlib.Path(path)
  place.parent.mkdir(parents=True, exist_ok=True)
  _leftovers.remove(place)
  with _leftovers.workplace(place.parent, place.name) as folder:
    make(epath.Path(folder / 'made'))
    try:
      (folder / 'made').rename(place)
    except OSError:  # Another process was first.
      if not place.exists():
        raise
  return os.fspath(path)
