"""Checkpoints on disk, each written once."""

import functools
from typing import Any

from etils import epath
import pytest

from gemma4_lora import g4


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory: pytest.TempPathFactory):
  """Returns `(variant, layout, **kwargs) -> (path, written params)`."""

  # Not above: the process that hands out tests need not import gemma.
  from tests.lib import states

  @functools.cache
  def make(
      variant: str,
      layout: str = 'nested',
      *,
      text_only: bool = True,
      **kwargs: Any,
  ):
    path = epath.Path(tmp_path_factory.mktemp('ckpt')) / f'{variant}-{layout}'
    params = g4.testing.make_checkpoint(
        states.model(variant, text_only=text_only),
        path,
        layout=layout,
        **kwargs,
    )
    return path, params

  return make
