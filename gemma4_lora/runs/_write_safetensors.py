"""Writes fused leaves as a folder that transformers opens."""

import json
import pathlib

from etils import epath

from gemma4_lora import nn
from gemma4_lora.ckpts.sources import _hugging_face
from gemma4_lora.gemma4 import _hf_names
from gemma4_lora.gemma4 import _names
from gemma4_lora.hf.weights import _config_files
from gemma4_lora.hf.weights import _shards
from gemma4_lora.hf.weights import _to_tensors
from gemma4_lora.host import _paths
from gemma4_lora.host.files import _json_objects
from gemma4_lora.host.files import _regular
from gemma4_lora.host.folders import _commit
from gemma4_lora.runs import _fused_leaves
from gemma4_lora.runs import _pieces
from gemma4_lora.runs import _run

# Beside the weights: settings, tokenizer, templates.
_OTHERS = ('*.json', '*.jinja', '*.model', '*.txt')
_INDEX = '.index.json'
_TOKENIZERS = ('tokenizer.json', 'tokenizer.model')
_TEMPLATES = ('chat_template.jinja', 'chat_template.json')
_PROCESSORS = ('processor_config.json', 'preprocessor_config.json')
_TOKENIZER_CONFIG = 'tokenizer_config.json'
# Those that servers read as objects of JSON.
_OBJECTS = (
    _TOKENIZERS[0],
    _TOKENIZER_CONFIG,
    _TEMPLATES[1],
    *_PROCESSORS,
    _config_files.GENERATION,
)


def check_folder(path: epath.PathLike, *, who: str) -> None:
  """Raises FileNotFoundError if there is no folder at `path`."""
  if not _paths.path(path, who=who).is_dir():
    raise FileNotFoundError(f'{who}: --hf_files={path} is no folder.')


def write(
    folder: pathlib.Path,
    run: _run.Run,
    fused: _fused_leaves.FusedLeaves,
    *,
    max_shard_bytes: int,
    hf_files: epath.PathLike | None,
    who: str,
) -> str:
  """Writes weights, `config.json`, `generation_config.json` and a tokenizer.

  Args:
    folder: Where to.
    run: The run.
    fused: Its leaves.
    max_shard_bytes: The most bytes of a file.
    hf_files: Where the tokenizer and the chat template are; default: beside the
      base, if that is a folder of transformers.
    who: The command, for messages.

  Returns:
    What the folder is for and what is not in it, for people.

  Raises:
    ValueError: `config.json` in `hf_files` is of another model, or a file there
      is damaged.
  """
  base = run.model.model if isinstance(run.model, nn.LoRA) else run.model
  shapes = {leaf.path: leaf.shape for leaf in run.leaves}
  tensors = _to_tensors.tensors(shapes, base.config)
  leaves = [leaf for leaf in run.leaves if tensors[leaf.path]]
  named = {
      tensor.name: (tensor.shape, leaf.dtype)
      for leaf in leaves
      for tensor in tensors[leaf.path]
  }
  name = _to_tensors.class_name(shapes)
  others = (
      _base_folder(run) if hf_files is None else _paths.path(hf_files, who=who)
  )
  # Before the weights are written: both say whether `hf_files` is right.
  config = _config_files.model_config(
      {k: shape for k, (shape, _) in named.items()},
      base.config,
      name=name,
      dtype=_dtype(run),
      like=_config_of(others, who),
      where=f'{who}: {others}/{_config_files.CONFIG}',
  )
  copied = [] if others is None else _copy(others, folder, who)
  writer = _shards.ShardWriter(folder, named, max_bytes=max_shard_bytes)
  by_rows = {k for k, some in tensors.items() if all(x.by_rows for x in some)}
  for group in fused.read(leaves, in_pieces=by_rows):
    while group:
      leaf, value = group.pop()
      assert not isinstance(value, dict)  # That belongs to `unfused` leaves.
      if isinstance(value, _pieces.Pieces):
        for first, rows in value.pieces:
          for tensor in tensors[leaf.path]:
            writer.write(tensor.name, tensor.take(rows), first=first)
        continue
      for tensor in tensors[leaf.path]:
        writer.write(tensor.name, tensor.take(value))
      del value
  _write_json(folder / _config_files.CONFIG, config)
  if _config_files.GENERATION not in copied:
    _write_json(
        folder / _config_files.GENERATION,
        _config_files.generation_config(base.config, name=name),
    )
  note = f'For {name}'
  if copied:
    note += f', with {", ".join(copied)} of {others}'
  missing = _missing(
      folder, with_images=_hf_names.prefix(name, 'vision') is not None
  )
  if missing:
    return (
        f'{note}. Not in it: {", ".join(missing)}. Give --hf_files=DIR, the'
        ' folder of a released model.'
    )
  return f'{note}.'


def _base_folder(run: _run.Run) -> epath.Path | None:
  """Returns the base's folder, if it is in the layout of transformers."""
  for leaf in run.leaves:
    if leaf.place is not None and isinstance(
        leaf.place.source, _hugging_face.HuggingFaceSource
    ):
      path = leaf.place.source.path
      return path if path.is_dir() else path.parent
  return None


def _config_of(folder: epath.Path | None, who: str) -> dict | None:
  path = folder and folder / _config_files.CONFIG
  if not path or not path.exists():
    return None
  return _json_objects.read(path, who=who)


def _dtype(run: _run.Run) -> str:
  """Returns the dtype of the table of tokens, as a config has one for all."""
  return next(
      str(leaf.dtype) for leaf in run.leaves if leaf.path == _names.EMBEDDING
  )


def _copy(source: epath.Path, folder: pathlib.Path, who: str) -> list[str]:
  """Copies what stands beside weights, all but what is made.

  Raises:
    ValueError: A file is not what its name says, or damaged.
  """
  copied = []
  for pattern in _OTHERS:
    for file in sorted(source.glob(pattern)):
      if file.name.endswith(_INDEX) or file.name in (
          _config_files.CONFIG,
          _commit.COMMIT,
      ):
        continue
      data = _regular.read(file, who=who)
      if file.name in _OBJECTS:
        _json_objects.parse(data, path=file, who=who)
      elif what := _regular.what_else(data[: _regular.HEAD_BYTES]):
        raise ValueError(f'{who}: {file} cannot be copied: {what}')
      (folder / file.name).write_bytes(data)
      copied.append(file.name)
  return copied


def _missing(folder: pathlib.Path, *, with_images: bool) -> list[str]:
  """Names what a server needs and the folder lacks."""

  def lacks(names):
    return not any((folder / name).exists() for name in names)

  missing = []
  if lacks(_TOKENIZERS):
    missing.append(f'the tokenizer ({_TOKENIZERS[0]})')
  settings = folder / _TOKENIZER_CONFIG
  if lacks(_TEMPLATES) and not (
      settings.exists() and b'chat_template' in settings.read_bytes()
  ):
    missing.append(f'the chat template ({_TEMPLATES[0]})')
  if with_images and lacks(_PROCESSORS):
    missing.append(f'the processor of images ({_PROCESSORS[0]})')
  return missing


def _write_json(path: pathlib.Path, fields: dict) -> None:
  path.write_text(json.dumps(fields, indent=2, sort_keys=True) + '\n')
