"""The README's config on a tiny model, whose base is wherever a path says."""

from kauldron import konfig

from tests.lib import shipped

with konfig.imports():
  from tests.lib import models  # pylint: disable=g-import-not-at-top

_CONFIG = shipped.ROOT / 'configs' / 'gemma4_e2b_lora_mtnt.py'


def get_config():
  cfg = shipped.config(_CONFIG, tiny=True)
  loader = cfg.init_transform.wrapped
  del loader.path  # Of random weights, which this machine has.
  loader.path = ''
  cfg.evals.eval.run.n = 4
  # Each command traces the model anew, each training four times.
  cfg.model.model = models.one_layer(cfg.model.model)
  # Compiling it takes longer than all else.
  cfg.evals.sampling.run.n, cfg.evals.sampling.run.skip_first = 1000, True
  return cfg
