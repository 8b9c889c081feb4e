"""Imports, the quickstart for 20 steps, and a PEFT folder of it.

Run by `run.py` in an environment that it built, in a folder to write to.
"""

import pathlib
import sys
import time

begin = time.monotonic()
import jax  # noqa: E402
from kauldron import konfig  # noqa: E402

from gemma4_lora import g4  # noqa: E402

sys.path.insert(0, sys.argv[1])  # The clone, for its configs.
from configs import quickstart  # noqa: E402

cfg = quickstart.get_config()
cfg.num_train_steps = 20
cfg.workdir = str(pathlib.Path('run').resolve())
trainer = konfig.resolve(cfg)
print(f'imported in {time.monotonic() - begin:.0f} s', file=sys.stderr)
state, _ = trainer.train()
g4.hf.save_peft('peft', model=trainer.model, params=state.params)
loaded = g4.hf.load_peft('peft', model=trainer.model.model)
assert jax.tree.leaves(loaded.params)
print(f'trained {int(state.step)} steps')
