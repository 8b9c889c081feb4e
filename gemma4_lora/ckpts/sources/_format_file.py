"""The file that names the format of each quantised array of a checkpoint.

```json
{"layer_0.attn.q_einsum.w": "int4", "layer_0.mlp.linear": "nf4"}
```

It stands beside the arrays. Older checkpoints, and those of Kauldron, have
none: there, the name and dtype of the codes determine the format.
"""

from collections.abc import Iterable
from collections.abc import Mapping
import json
import os

from etils import epath

from gemma4_lora import _trees
from gemma4_lora.ckpts.sources import _checkpoint_layouts
from gemma4_lora.ckpts.sources import _quantized_leaves
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.quant import _format

NAME = 'quantized.json'


def write(
    folder: os.PathLike[str], encodings: Mapping[str, _format.Encoding]
) -> None:
  """Writes the file.

  Args:
    folder: Folder of the arrays.
    encodings: How arrays are held, by dotted path below `params`.
  """
  kinds = {path: x.kind for path, x in encodings.items()}
  (epath.Path(folder) / NAME).write_text(json.dumps(kinds, indent=1))


def check(
    folder: epath.Path,
    leaves: Iterable[_checkpoint_layouts.Stored],
    *,
    who: str,
) -> None:
  """Checks codes against the formats in the file, if there is one.

  Args:
    folder: Folder of the arrays.
    leaves: All leaves of the checkpoint.
    who: The transform that asks, for messages.

  Raises:
    ValueError: The file is damaged, or contradicts the codes.
  """
  file = folder / NAME
  if not file.exists():
    return
  try:
    said = _json_objects.read(file)
  except ValueError as e:
    raise ValueError(
        f'{who}: {file} is damaged. Copy or download the checkpoint again. {e}'
    ) from e
  found = {
      _trees.join(x.path[1:]): x.encoding.kind
      for x in _quantized_leaves.group(leaves, who=who)
      if x.encoding is not None
  }
  for path in sorted(said.keys() | found.keys()):
    if said.get(path) != found.get(path):
      raise ValueError(
          f'{who}: {_regular.shown(path)} of the checkpoint is'
          f' {_regular.shown(said.get(path, "not quantised"))} by {file}, and {found.get(path, "not quantised")} by its codes. Copy'
          ' or download the checkpoint again.'
      )
