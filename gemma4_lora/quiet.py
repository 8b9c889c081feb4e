"""Import this first, and TensorFlow, absl and libtpu say only what is wrong.

```python
import gemma4_lora.quiet  # Before gemma, kauldron and jax.
from gemma import gm
```

They print a page of notes to stderr when they are imported, which a notebook shows
in red. What hides them are environment variables, read once, at import: those that
you set yourself stay as they are. `python -m gemma4_lora` does this for its
commands; importing `g4` does not.

| variable | hides |
|---|---|
| `TF_CPP_MIN_LOG_LEVEL=3` | TensorFlow's notes, and CUDA plugins that it registers twice |
| `TF_ENABLE_ONEDNN_OPTS=0` | that TensorFlow, which only reads data here, uses oneDNN; it then does not |
| `GRPC_VERBOSITY=ERROR` | gRPC's notes on forks |
| `TPU_WORKER_HOSTNAMES=localhost`, `TPU_HOST_BOUNDS=1,1,1` | libtpu's search for other hosts, where there is no TPU |

In a terminal or a notebook it also says that the imports will take a while.
"""

from collections.abc import MutableMapping
import os
import sys
from typing import TextIO

_DEFAULTS = {
    'TF_CPP_MIN_LOG_LEVEL': '3',
    'TF_ENABLE_ONEDNN_OPTS': '0',
    'GRPC_VERBOSITY': 'ERROR',
}
_WITHOUT_TPU = {
    'TPU_WORKER_HOSTNAMES': 'localhost',
    'TPU_HOST_BOUNDS': '1,1,1',
}


def set_defaults(env: MutableMapping[str, str], *, has_tpu: bool) -> None:
  """Sets what is not set.

  Args:
    env: Environment variables.
    has_tpu: Whether a TPU is attached, which knows its hosts.
  """
  for name, value in (_DEFAULTS | ({} if has_tpu else _WITHOUT_TPU)).items():
    env.setdefault(name, value)


def say_what_takes_long(stream: TextIO) -> None:
  """Prints a line about the imports, to someone who waits for them."""
  someone = stream.isatty() or 'ipykernel' in sys.modules
  if someone and 'kauldron' not in sys.modules:
    print(
        'gemma4_lora: importing JAX, TensorFlow, gemma and Kauldron: about 20 s'
        ' the first time …',
        file=stream,
        flush=True,
    )


set_defaults(
    os.environ,
    has_tpu=any(map(os.path.exists, ('/dev/accel0', '/dev/vfio/0'))),
)
# Notebooks show what is on stderr in red.
say_what_takes_long(sys.stdout if 'ipykernel' in sys.modules else sys.stderr)
