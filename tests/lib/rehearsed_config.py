"""The README's config on a tiny model, whose base is wherever a path says."""

from tests.lib import shipped

_CONFIG = shipped.ROOT / 'configs' / 'gemma4_e2b_lora_mtnt.py'


def get_config():
  cfg = shipped.config(_CONFIG, tiny=True)
  loader = cfg.init_transform.wrapped
  del loader.path  # Of random weights, which this machine has.
  loader.path = ''
  for evaluator in cfg.evals.values():
    # Compiling them takes longer than all else.
    evaluator.run.n, evaluator.run.skip_first = 1000, True
  return cfg
