"""Any config on a tiny model: the same pieces, on any machine, in a minute.

```python
from gemma4_lora import tiny

ConfigArgs = tiny.ConfigArgs


def get_config(args: ConfigArgs = ConfigArgs()):
  cfg = kd.train.Trainer(...)
  return tiny.shrink(cfg) if args.tiny else cfg
```

`--cfg.__args__.tiny=True` then trains `g4.testing`'s model, tokenizer and
sentences in the place of the real ones, which need not be there.
"""

from collections.abc import Iterator
import copy
import dataclasses
from typing import Any

from etils import epy
from kauldron import konfig

from gemma4_lora.gemma4 import _sizes

with epy.lazy_imports():  # It imports jax.
  from gemma4_lora.quant import _formats

_Node = konfig.ConfigDict

_TASKS = (
    'data.ChatTask',
    'data.PreferenceTask',
    'data.Seq2SeqTask',
    'data.TextTask',
    'data.UnpairedTask',
)
_DATASETS = (
    'data.py.Tfds',
    'data.py.HuggingFace',
    'data.py.Json',
    'data.py.DataSource',
    'data.Files',
    'data.Jsonl',
    'data.Parquet',
)
_MIXES = ('data.py.Mix', 'data.py.SelectFromDatasets')
# What all datasets have in common; the rest says where the data are.
_OF_ALL_DATASETS = (
    'batch_size',
    'num_epochs',
    'seed',
    'shuffle',
    'transforms',
)
_LOADERS = ('ckpts.LoadCheckpoint', 'ckpts.PartialLoad')

_STEPS = 2
_BATCH_SIZE = 8  # As many as devices of a host.
_LENGTH = 64  # In tokens. The longest chat of the pairs has 44.
_ANSWER = 8
_SOFT_TOKENS = 4  # Per image.
_GROUP_SIZE = 2  # Weights that share a scale: divides all tiny widths.


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConfigArgs:
  """What Kauldron sets by `--cfg.__args__.tiny=True`.

  Attributes:
    tiny: Whether to shrink the config.
  """

  tiny: bool = False


def shrink(cfg: konfig.ConfigDict) -> konfig.ConfigDict:
  """Returns the config with tiny models and data, for two steps of training.

  What is replaced: models, tokenizers, datasets (by sentences in the fields that
  the task reads, with small images among them where it reads any), checkpoints
  (by random ones, which are made on first use: safetensors where `PartialLoad`
  has a path on this machine, else Orbax's), and sizes: lengths, batches, numbers
  of steps, groups of a quantised base. All else is the config's own.

  Args:
    cfg: Config of a `kd.train.Trainer`. It is changed in place.

  Raises:
    ValueError: There is no Gemma 4 model in it, or a dataset has no task.
  """
  models = [x for x in _nodes(cfg.model) if _is(x, 'nn.', _sizes.NAMES)]
  if len(models) != 1:
    raise ValueError(
        f'tiny.shrink(cfg): cfg.model has {len(models)} gm.nn.Gemma4_…, and it'
        ' takes one, to be replaced by a tiny one.'
    )
  (model,) = models
  has_images = model.get('text_only') is False
  name = model.__qualname__.rpartition('.')[-1]
  model.__qualname__ = _g4('testing', name + '_Images' * has_images)
  for node in list(_nodes(cfg.model)):
    if _is(node, 'nn.', ('LoRA',)) and node.get('quantize'):
      _shrink_formats(node)
  # First, as what is within them is no dataset to train on.
  for node in list(_nodes(cfg)):
    if _is(node, 'data.', ('PackedSource',)):
      _set(node, 'data_source', _rows(node))
  for node in list(_nodes(cfg)):
    if _is(node, 'text.', ('Gemma4Tokenizer',)):
      node.__qualname__ = _g4('testing', 'Gemma4Tokenizer')
      if has_images:
        node.path = _new('testing.ImageVocabulary')
    elif _is(node, '', _LOADERS):
      _shrink_loader(node, model)
    elif _is(node, '', _DATASETS):
      _shrink_dataset(node)
    elif _is(node, '', _MIXES):
      _shrink_batches(node)  # Its datasets have rows of their own.
    elif _is(node, '', (*_TASKS, 'data.DropLongPrompts')):
      _shrink_task(node)
    elif _is(node, 'evals.', ('Evaluator', 'SamplerEvaluator')):
      _shrink_evaluator(node)
    elif _is(node, 'sharding.', ('FSDPSharding',)):
      node.min_size_to_shard_mb = 0  # All leaves are small.
  cfg.num_train_steps = _STEPS
  cfg.log_metrics_every = 1
  cfg.checkpointer.save_interval_steps = _STEPS
  cfg.setup = _new('train.QuietSetup')
  cfg.writer = _new('train.TerminalWriter')
  return cfg


def _shrink_loader(node: _Node, model: _Node) -> None:
  """Makes it load random weights, in the format of the real ones."""
  is_file = isinstance(node.path, str) and '://' not in node.path
  is_hf = is_file and _is(node, '', ('ckpts.PartialLoad',))
  _set(
      node,
      'path',
      _new(
          'testing.RandomCheckpoint',
          model=copy.deepcopy(model),
          layout='hf' if is_hf else 'nested',
      ),
  )


def _shrink_formats(node: _Node) -> None:
  """Sets group sizes; formats that have one are spelled out for it."""
  grouped = [x for x in _formats.FORMATS if hasattr(x, 'group_size')]
  names = {x.kind: f'quant.{x.__name__}' for x in grouped}
  formats = node.quantize
  if not isinstance(formats, list | tuple):
    formats = [formats]
  formats = [
      _new(names[x]) if isinstance(x, str) and x in names else x
      for x in formats
  ]
  for format_ in formats:
    if _is(format_, '', tuple(names.values())):
      format_.group_size = _GROUP_SIZE
  _set(node, 'quantize', formats)


def _shrink_dataset(node: _Node) -> None:
  if not _is(node.get('data_source'), 'data.', ('PackedSource',)):
    _set(node, 'data_source', _rows(node))
  for key in set(node) - {'__qualname__', 'data_source', *_OF_ALL_DATASETS}:
    del node[key]
  node.__qualname__ = 'kauldron.kd:data.py.DataSource'
  _shrink_batches(node)


def _shrink_batches(node: _Node) -> None:
  node.num_workers = 0  # Starting one takes longer than all rows.
  if node.get('batch_size'):
    node.batch_size = _BATCH_SIZE


def _rows(ds: _Node) -> _Node:
  """Returns sentences in the fields that the task of a dataset reads."""
  transforms = ds.get('transforms') or ()
  task = next((x for x in transforms if _is(x, '', _TASKS)), None)
  if task is None:
    raise ValueError(
        f'tiny.shrink(cfg): {ds.__qualname__} has no task in its transforms='
        ' (g4.data.ChatTask or g4.data.PreferenceTask), which would say what'
        ' the rows of a tiny dataset look like.'
    )
  fields = {
      key: task[key]
      for key in ('layout', 'in_prompt', 'in_messages', 'in_images')
      if key in task
  }
  if _is(task, '', ('data.PreferenceTask',)):
    fields['in_response'] = task.get('in_chosen', 'chosen')
    fields['in_rejected'] = task.get('in_rejected', 'rejected')
  elif _is(task, '', ('data.UnpairedTask',)):
    fields['in_response'] = task.get('in_completion', 'completion')
    fields['in_label'] = task.get('in_label', 'label')
  elif _is(task, '', ('data.TextTask',)):
    fields['in_prompt'] = task.get('in_prompt')
    fields['in_response'] = task.get('in_text', 'text')
  elif 'in_response' in task:
    fields['in_response'] = task.in_response
  others = [
      key
      for x in transforms
      if _is(x, 'data.', ('Elements',))
      for key in x.get('keep', ())
  ]
  return _new(
      'testing.ChatRows',
      split='train' if ds.get('shuffle', True) else 'test',
      others=[key for key in others if key not in fields.values()],
      **fields,
  )


def _shrink_task(node: _Node) -> None:
  if 'max_length' in node:
    node.max_length = _LENGTH
  if 'in_images' in node:
    node.max_soft_tokens = _SOFT_TOKENS
    node.patch_size = 4  # As in the tiny towers.


def _shrink_evaluator(node: _Node) -> None:
  node.run = konfig.ConfigDict(
      {'__qualname__': 'kauldron.kd:evals.EveryNSteps', 'n': _STEPS}
  )
  node.num_batches = 1
  if 'max_new_tokens' in node:
    node.max_new_tokens = _ANSWER
  if 'pad_length' in node:
    node.pad_length = _LENGTH
  if 'cache_length' in node:
    node.cache_length = 2 * _LENGTH


def _set(node: _Node, key: str, value: Any) -> None:
  """Sets a field that may be of another type: `ConfigDict` refuses that."""
  if key in node:
    del node[key]
  node[key] = value


def _is(node: Any, prefix: str, names: tuple[str, ...]) -> bool:
  """Whether a node is one of some classes of gemma, Kauldron or this package."""
  if not isinstance(node, konfig.ConfigDict) or '__qualname__' not in node:
    return False
  module, _, path = node.__qualname__.partition(':')
  is_ours = module in ('gemma.gm', 'kauldron.kd', 'gemma4_lora.g4')
  return is_ours and path in {prefix + name for name in names}


def _new(path: str, **kwargs: Any) -> _Node:
  """Returns the config of something of `g4`."""
  namespace, _, name = path.partition('.')
  return konfig.ConfigDict({'__qualname__': _g4(namespace, name), **kwargs})


def _g4(namespace: str, name: str) -> str:
  return f'gemma4_lora.g4:{namespace}.{name}'


def _nodes(value: Any) -> Iterator[_Node]:
  """Gives all nodes of a config, the outer ones first."""
  if isinstance(value, konfig.ConfigDict):
    yield value
    children = value.values()
  elif isinstance(value, list | tuple):
    children = value
  else:
    return
  for child in list(children):
    yield from _nodes(child)
