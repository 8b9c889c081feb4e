"""All lists of the sizes follow from one table."""

import pickle
import re

from gemma import gm
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.gemma4 import _upstream


@pytest.mark.parametrize('size', _sizes.SIZES, ids=_sizes.NAMES)
def test_a_size_has_its_class_and_tiny_twins(size):
  assert issubclass(size.cls, _upstream.Transformer)
  for name in (size.name, f'{size.name}_Images'):
    twin = getattr(g4.testing, name)
    assert issubclass(twin, size.cls)
    assert pickle.loads(pickle.dumps(twin)) is twin
    assert twin.config.num_embed == (262144 if 'Images' in name else 1024)


def test_every_gemma_4_of_gemma_is_in_the_table():
  ours = {size.name for size in _sizes.SIZES if size.namespace == 'gm.nn'}
  assert ours == {name for name in dir(gm.nn) if name.startswith('Gemma4_')}


def test_the_error_lists_them():
  match = re.escape(_sizes.listed()) + r'\. Got: .*Gemma3_1B'
  with pytest.raises(ValueError, match=match):
    _upstream.check_is_gemma4(gm.nn.Gemma3_1B(), argument='model=')
