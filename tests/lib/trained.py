"""A run on disk whose LoRA was trained, by saying so."""

import jax
from kauldron import kd
import numpy as np

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.runs import _export
from gemma4_lora.testing import _checkpoints
from tests.lib import random_params
from tests.lib import states

WHO = 'gemma4_lora fuse'


class Run:
  """A run whose LoRA was trained, by saying so.

  Attributes:
    model: The `g4.nn.LoRA`.
    params: All parameters, as the run had them.
    workdir: The run's workdir.
    transform: The `init_transform=` of its config.
    released: Path of the base.
  """

  def __init__(
      self,
      path,
      model,
      *,
      full=False,
      layout='nested',
      base=None,
      base_dtype=None,
      **kwargs,
  ):
    self.model = model
    self.workdir = path / 'run'
    self.released = base or path / 'base'
    if base is None:
      _checkpoints.make_checkpoint(
          model, self.released, layout=layout, dtype=base_dtype, **kwargs
      )
    self.transform = g4.ckpts.SkipLoRA4(
        wrapped=g4.ckpts.PartialLoad(path=self.released), model=model
    )
    params = _upstream.abstract_params(model)
    params = _trees.merge(params, _fresh_lora(model, params))
    state = self.transform.transform(states.wrap(params))
    # What training would do to A and B, and to no NaN of PiSSA.
    rng = np.random.default_rng(5)

    def train(keys, x):
      if not _trees.is_lora(_trees.key_path(keys)):
        return x
      # In NumPy, here and below: jax would compile a program for each shape.
      update = 0.3 * rng.standard_normal(x.shape).astype(x.dtype)
      return random_params.on_device(np.asarray(x) + update)

    self.params = jax.tree_util.tree_map_with_path(train, state.params)
    self.save(full=full)

  def save(self, *, full=False):
    state = states.wrap(self.params)
    if full:
      with kd.ckpts.Checkpointer(
          workdir=self.workdir, save_interval_steps=1
      ) as ckpt:
        ckpt.save(state, step=3, force=True)
      return
    item = _lora_item.LoRAItem(
        item=state,
        fingerprint=_fingerprint.describe(self.model, self.params),
    )
    with kd.ckpts.Checkpointer(
        workdir=self.workdir, save_interval_steps=1
    ) as ckpt:
      ckpt.save(item, step=3, force=True)

  def export(self, out, **kwargs):
    kwargs = {
        'model': self.model,
        'init_transform': self.transform,
        'workdir': self.workdir,
        'who': WHO,
    } | kwargs
    return _export.export(out, **kwargs)


def _fresh_lora(model, params):
  """LoRA leaves as `model.init` gives them, or waiting for the base."""
  _, lora = _trees.split_lora(params)
  lora = jax.tree.map(
      lambda x: random_params.on_device(np.full(x.shape, 0.5, x.dtype)), lora
  )
  if model.init_lora_weights in ('pissa', 'olora'):
    return random_params.pending(lora)
  return lora
