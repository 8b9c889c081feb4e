"""The file beside the arrays and the codes say the same of each format."""

import json

from etils import epath
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _format_file
from gemma4_lora.quant import _arrays

_ENCODING = g4.quant.NF4(group_size=2).encoding((4, 3), (0,), name='w')


def _leaves(**values):
  stored = {'params': {k: _arrays.stored(x) for k, x in values.items()}}
  return [
      _checkpoint_layouts.Stored(
          path=path, key=path, shape=x.shape, dtype=np.dtype(x.dtype)
      )
      for path, x in _trees.flatten(stored).items()
  ]


_LEAVES = _leaves(
    w=g4.quant.quantize(np.ones((4, 3)), _ENCODING), norm=jnp.ones(3)
)


def _check(folder):
  _format_file.check(epath.Path(folder), _LEAVES, who='test')


def test_what_is_written_is_what_codes_say(tmp_path):
  _check(tmp_path)  # There may be none.
  _format_file.write(tmp_path, {'w': _ENCODING})
  assert json.loads((tmp_path / 'quantized.json').read_text()) == {'w': 'nf4'}
  _check(tmp_path)


@pytest.mark.parametrize(
    ('text', 'match'),
    [
        ('{"w": "int4"}', r'test: w .*is int4 by .*quantized.json, and nf4 by'),
        ('{"w": "fp3"}', 'w of the checkpoint is fp3 by .* nf4 by its codes'),
        ('{}', 'w of the checkpoint is not quantised by .* nf4 by its codes'),
        ('{"w": "nf4", "norm": "int8"}', 'norm .* int8 by .* not quantised by'),
        ('{"w"', 'quantized.json is damaged. Copy or download'),
        ('3', 'quantized.json is damaged'),
    ],
)
def test_a_file_that_contradicts_the_codes_is_an_error(text, match, tmp_path):
  (tmp_path / 'quantized.json').write_text(text)
  with pytest.raises(ValueError, match=match):
    _check(tmp_path)
