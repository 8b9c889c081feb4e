r"""Commands for a shell.

```sh
python -m gemma4_lora summary --cfg=configs/gemma4_e2b_lora_mtnt.py \
    --cfg.model.rank=8
```

prints what a config's LoRA adapts, without allocating the model.
"""

from collections.abc import Sequence
import difflib
from typing import Any

from absl import app
from absl import flags
from kauldron import konfig

from gemma4_lora import g4

_CONFIG = konfig.DEFINE_config_file(
    'cfg', None, 'Config of the run.', lock_config=False
)


def main(argv: Sequence[str]) -> None:
  names = argv[1:]
  if len(names) != 1 or names[0] not in _COMMANDS:
    close = difflib.get_close_matches(' '.join(names), _COMMANDS)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise app.UsageError(
        f'Give one command of {sorted(_COMMANDS)}. Got: {names}.{hint}'
    )
  if not flags.FLAGS['cfg'].present:
    raise app.UsageError('--cfg=... is missing: the config of the run.')
  _COMMANDS[names[0]]()


def _summary() -> None:
  # Of the whole config only the model: its data may not be at hand here.
  cfg: Any = _CONFIG.value
  print(g4.nn.summary(konfig.resolve(cfg.model)))


_COMMANDS = {'summary': _summary}


if __name__ == '__main__':
  app.run(main)
