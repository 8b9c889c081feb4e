"""From a `g4.nn.LoRA` and its leaves to a folder of mlx-lm."""

from collections.abc import Mapping
from collections.abc import Sequence
import json
from typing import Any
from typing import Literal

from etils import epath
import numpy as np
import safetensors.numpy

from gemma4_lora.hf import _model_loras
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.nn import _lora
from gemma4_lora.peft import _branch
from gemma4_lora.servers import _forms
from gemma4_lora.servers import _mlx
from gemma4_lora.servers import _server
from gemma4_lora.servers import _servers
from gemma4_lora.targets import _scale

_WHO = 'g4.hf.save_mlx'
_SERVER = _servers.SERVERS['mlx']
_CONFIG, _TENSORS = 'adapter_config.json', 'adapters.safetensors'
# The language model, by the class whose folder MLX converted.
_PREFIXES = {
    'Gemma4ForConditionalGeneration': 'language_model.model.',
    'Gemma4ForCausalLM': 'model.',
}
_EXPERTS = {
    'expert_gate': 'gate_proj',
    'expert_up': 'up_proj',
    'expert_down': 'down_proj',
}


def save_mlx(
    path: epath.PathLike,
    *,
    model: _lora.LoRA,
    params: Mapping[str, Any],
    base_model_class: Literal[
        'Gemma4ForConditionalGeneration', 'Gemma4ForCausalLM'
    ] = 'Gemma4ForConditionalGeneration',
    overwrite: bool = False,
) -> None:
  """Saves LoRA as mlx-lm does: `adapter_config.json`, `adapters.safetensors`.

  ```python
  g4.hf.save_mlx('my_lora', model=model, params=state.params)
  ```

  and, on a Mac: `mlx_lm.generate --model MODEL --adapter-path my_lora`.

  mlx-lm has one rank and one scale for all modules: smaller ranks are filled with
  zeros, and other scales go into B, so that the products stay the same. Float32.

  Args:
    path: Folder to make, here or in a bucket.
    model: A `g4.nn.LoRA`, without DoRA on experts, on the language model alone.
    params: Its parameters, nested; the LoRA leaves are enough.
    base_model_class: Class of transformers whose weights MLX converted.
    overwrite: Whether to replace the folder if there is one.

  Raises:
    FileExistsError: `path` exists, and `overwrite` is False.
    ValueError: `model` has no LoRA, mlx-lm cannot hold it, or `params` is not its
      parameters or has NaN.
  """
  if not isinstance(model, _lora.LoRA):
    raise ValueError(
        f'{_WHO}(model=...) takes a g4.nn.LoRA. Got: {type(model).__name__}'
    )
  if base_model_class not in _PREFIXES:
    raise ValueError(
        f'{_WHO}(base_model_class=...) takes one of {list(_PREFIXES)}. Got:'
        f' {base_model_class!r}'
    )
  _check(model)
  path = _new_folder.check_free(path, overwrite=overwrite, who=_WHO)
  loras, _ = _forms.formed(
      list(_model_loras.row_loras(model, params, who=_WHO)),
      _SERVER,
      use_rslora=model.use_rslora,
  )
  prefix = _PREFIXES[base_model_class]
  tensors = {}
  for lora in loras:
    tensors |= _tensors(lora, prefix)
  with _new_folder.new_folder(path, overwrite=overwrite, who=_WHO) as folder:
    (folder / _CONFIG).write_text(
        json.dumps(_config(model, loras, tensors), indent=2, sort_keys=True)
    )
    safetensors.numpy.save_file(
        {k: np.ascontiguousarray(x) for k, x in tensors.items()},
        folder / _TENSORS,
        {'format': 'mlx'},
    )


def _check(model: _lora.LoRA) -> None:
  """Raises for what mlx-lm has no place for."""
  rows = [linear.row for linear in model.adapted]
  found = _mlx.of_lora(
      variant=model.variant,
      init_lora_weights=_model_loras.saved_init(model, who=_WHO),
      of_towers=[row.hf_name for row in rows if row.tower != 'text'],
      full=[part.path for part in model.saved],
      has_experts=any(row.is_routed for row in rows),
  )
  _server.check(_SERVER, found, who=_WHO)


def _tensors(lora: _branch.RowLoRA, prefix: str) -> dict[str, np.ndarray]:
  """Returns A `[in, rank]` and B `[rank, out]`, of experts `[E, rank, in]`."""
  row = lora.row
  if row.is_routed:
    module = row.hf_name.rpartition('.')[0]
    name = f'{prefix}{module}.switch_glu.{_EXPERTS[row.projection]}'
    return {
        f'{name}.lora_a': lora.a.swapaxes(1, 2),
        f'{name}.lora_b': lora.b.swapaxes(1, 2),
    }
  name = f'{prefix}{row.hf_name}'
  return {
      f'{name}.lora_a': lora.a.reshape(-1, lora.rank),
      f'{name}.lora_b': lora.b.reshape(lora.rank, -1),
      **{f'{name}.{k}': x.reshape(-1) for k, x in lora.own.items()},
  }


def _config(
    model: _lora.LoRA,
    loras: Sequence[_branch.RowLoRA],
    tensors: Mapping[str, Any],
) -> dict[str, Any]:
  first = loras[0]
  keys = {name.rpartition('.')[0] for name in tensors}
  return {
      'fine_tune_type': 'dora' if model.variant.own else 'lora',
      'num_layers': model.config.num_layers,
      'lora_parameters': {
          'rank': first.rank,
          'scale': _scale.scale(first.alpha, first.rank, use_rslora=False),
          'dropout': 0.0,
          # Full names: it looks for these in the whole model, too.
          'keys': sorted(keys),
      },
  }
