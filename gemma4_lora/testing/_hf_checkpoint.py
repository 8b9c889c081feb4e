"""A tiny text model as a folder of transformers."""

from collections.abc import Mapping
import json
import pathlib

import numpy as np

from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.hf.weights import _config_files
from gemma4_lora.hf.weights import _shards
from gemma4_lora.hf.weights import _to_tensors


def write(
    folder: pathlib.Path,
    flat: Mapping[str, np.ndarray],
    config: _upstream.TransformerConfig,
) -> None:
  """Writes `config.json` and `model.safetensors`, of `Gemma4ForCausalLM`.

  Args:
    folder: Where. It is made if it is not there.
    flat: All leaves, by their dotted paths.
    config: The model's config.

  Raises:
    ValueError: There are leaves of towers.
  """
  shapes = {path: leaf.shape for path, leaf in flat.items()}
  name = _to_tensors.class_name(shapes)
  if name != 'Gemma4ForCausalLM':
    raise ValueError(
        "make_checkpoint: layout='hf' writes models of text alone, and this one"
        ' has towers: give one with text_only=True.'
    )
  tensors = _to_tensors.tensors(shapes, config)
  folder.mkdir(parents=True, exist_ok=True)
  writer = _shards.ShardWriter(
      folder,
      {
          tensor.name: (tensor.shape, flat[path].dtype)
          for path in flat
          for tensor in tensors[path]
      },
  )
  for path, leaf in flat.items():
    for tensor in tensors[path]:
      writer.write(tensor.name, tensor.take(leaf))
  fields = _config_files.model_config(
      {}, config, name=name, dtype=str(flat[_names.EMBEDDING].dtype)
  )
  (folder / _config_files.CONFIG).write_text(json.dumps(fields, indent=2))
