"""NaN in a base: found however it is read, and let pass when asked."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts.sources import _contents
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.gemma4 import _upstream
from tests.lib import models
from tests.lib import states


@pytest.mark.parametrize(
    ('layout', 'value', 'what'),
    [
        ('nested', np.nan, 'NaN'),
        ('hf', np.nan, 'NaN'),
        ('hf', -np.inf, 'infinite values'),
    ],
)
def test_an_error_that_names_the_leaf_or_a_warning(
    layout, value, what, tmp_path, caplog
):
  model = models.base(cut=models.one_layer)
  shapes = _upstream.abstract_params(model)
  bad = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
  bad['layer_0']['mlp']['linear'][3, 5] = value
  path = tmp_path / layout
  g4.testing.make_checkpoint(model, path, layout=layout, params=bad)
  state = states.wrap(shapes)
  match = rf"mlp\.linear.* has {what}: .*PartialLoad\(nan='warn'\)"
  with pytest.raises(ValueError, match=match) as e:
    g4.ckpts.PartialLoad(path=path).transform(state)
  assert str(path) in str(e.value)
  with caplog.at_level(logging.WARNING, logger='absl'):
    got = g4.ckpts.PartialLoad(path=path, nan='warn').transform(state)
  assert 'mlp.linear' in caplog.text and f'has {what}' in caplog.text
  assert not np.isfinite(got.params['layer_0']['mlp']['linear'][3, 5])


@pytest.mark.parametrize('numpy', [np, jnp])
def test_only_bounds_are_infinite(numpy):
  for value in (np.inf, -np.inf):
    for dtype in (jnp.bfloat16, np.float32):
      array = numpy.asarray([0, value, 1], dtype)
      found = _contents.problem('layer_0.mlp.scales', array)
      assert found == 'layer_0.mlp.scales has infinite values'
      assert not _contents.problem('block_0.kernel.clip_input_min', array)


def test_rows_and_shards_are_looked_at_too(tmp_path):
  array = np.ones((64, 64), np.float32)
  array[40, 0] = np.nan
  args = ocp.SaveArgs(chunk_byte_size=2048)  # Many: read by Orbax.
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
    checkpointer.save(
        tmp_path / 'c', ocp.args.PyTreeSave({'x': array}, save_args={'x': args})
    )
  source = _open.open_source(tmp_path / 'c', who='T')
  rows = source.open_rows(('x',))
  rows.read(0, 40)
  with pytest.raises(ValueError, match=r'/c: x has NaN'):
    rows.read(40, 41)
  mesh = jax.make_mesh((8,), ('d',))
  sharding = jax.NamedSharding(mesh, jax.P('d'))
  wanted = ocp.ArrayRestoreArgs(sharding=sharding, dtype=jnp.float32)
  with pytest.raises(ValueError, match=r'/c: x has NaN'):
    source.read({('x',): wanted})
