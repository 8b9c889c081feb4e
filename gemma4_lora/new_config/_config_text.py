"""The text of a new config."""

from collections.abc import Mapping
import dataclasses
import math
from typing import Any

from gemma4_lora.gemma4 import _sizes
from gemma4_lora.new_config import _proposed_task

METHODS = ('lora', 'qlora', 'dora', 'dpo')
_NUM_EPOCHS = 2
# Models that one chip cannot hold in bfloat16, and that expect an empty thought.
_LARGE = ('Gemma4_31B', 'Gemma4_12B', 'Gemma4_26B_A4B')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What a user asks for.

  Attributes:
    file: Name of the config's file.
    model: Name of the model's class.
    data: Path of the rows.
    method: One of `METHODS`.
    topology: Chips.
    num_devices: Number of devices of the topology.
    num_rows: Number of rows.
    proposal: The task that reads them.
  """

  file: str
  model: str
  data: str
  method: str
  topology: str
  num_devices: int
  num_rows: int
  proposal: _proposed_task.Proposal

  @property
  def batch_size(self) -> int:
    at_least = 1 if self.model in _LARGE else 8
    return max(at_least, self.num_devices)

  @property
  def num_train_steps(self) -> int:
    return math.ceil(_NUM_EPOCHS * self.num_rows / self.batch_size)


def text(request: Request) -> str:
  """Returns a config that `show`, `plan` and `train` take as it is."""
  size = next(x for x in _sizes.SIZES if x.name == request.model)
  is_dpo = request.method == 'dpo'
  return f'''\
"""{size.name} on {request.data}, by {request.method} on {request.topology}.

    gemma4_lora show --cfg={request.file}
    gemma4_lora plan --cfg={request.file} --topology={request.topology}
    gemma4_lora train --cfg={request.file} --workdir=/tmp/{_stem(request.file)}

With --cfg.__args__.tiny=True it is a tiny model on made-up data, anywhere.
"""

from kauldron import konfig

from gemma4_lora import tiny

with konfig.imports():
  from gemma import gm
  from kauldron import kd
  import optax

  from gemma4_lora import g4

ConfigArgs = tiny.ConfigArgs
{_keys(is_dpo)}

def get_config(args: ConfigArgs = ConfigArgs()):
  cfg = kd.train.Trainer(
      seed=42,
      train_ds=g4.data.Files(
          path={request.data!r},
          shuffle=True,
          batch_size={request.batch_size},
          num_workers=4,
          transforms=[
              kd.data.Elements(keep={[*request.proposal.keep]!r}),
              g4.data.{request.proposal.cls}(
{_lines(_task(request), 18)}
              ),
          ],
      ),
      model=g4.nn.LoRA(
          rank=16,
          alpha=32,
          model={size.namespace}.{size.name}(tokens="batch.input"),
{_lines(_model(request), 10)}
      ),
      init_transform=g4.ckpts.SkipLoRA4(
{_loader(size)}
      ),
      trainstep=g4.train.TrainStep(),
{_sharding(request)}\
      # {_NUM_EPOCHS} epochs of {request.num_rows} rows.
      num_train_steps={request.num_train_steps},
{_losses(is_dpo)}
      optimizer=kd.optim.partial_updates(
          optax.adamw(learning_rate={'5e-6' if is_dpo else '1e-4'}),
          mask=kd.optim.select("lora"),
      ),
      checkpointer=g4.ckpts.LoRACheckpointer(save_interval_steps=200),
  )
  return tiny.shrink(cfg) if args.tiny else cfg
'''


def _loader(size: _sizes.Size) -> str:
  """Returns the loader of the base: gemma's checkpoint, if one was released."""
  if size.namespace == 'gm.nn':
    return f"""\
          wrapped=gm.ckpts.LoadCheckpoint(
              path=gm.ckpts.CheckpointPath.{size.name.upper()}_IT,
          ),"""
  name = f'gemma-4-{size.name.removeprefix("Gemma4_")}-it'
  return f"""\
          # hf download google/{name} --local-dir=/tmp/{name}
          wrapped=g4.ckpts.PartialLoad(path="/tmp/{name}"),"""


def _stem(file: str) -> str:
  return file.rpartition('/')[2].removesuffix('.py')


def _task(request: Request) -> Mapping[str, Any]:
  proposal = request.proposal
  length = _proposed_task.max_length(proposal.lengths)
  arguments = dict(proposal.arguments)
  if request.model in _LARGE and proposal.cls != 'TextTask':
    arguments['thinking'] = 'empty'  # Their servers put it into prompts.
  written = {k: repr(v) for k, v in arguments.items()}
  return written | {
      'tokenizer': 'gm.text.Gemma4Tokenizer()',
      'max_length': f'{length}',
      'truncate': 'True',
      'max_malformed': '0.01',
  }


def _model(request: Request) -> Mapping[str, str]:
  arguments = {}
  if request.method == 'qlora':
    arguments['quantize'] = '"int4"'
  if request.method == 'dora':
    arguments['use_dora'] = 'True'
  if request.method == 'dpo':
    arguments['with_reference'] = 'True'
  arguments |= {
      'logits_in_training': 'False',
      'remat': '"block"' if request.model in _LARGE else '"attention"',
      'attention': '"blockwise"',
  }
  if request.model in _LARGE:
    arguments['scan_layers'] = 'True'
  return arguments


def _lines(arguments: Mapping[str, str], indent: int) -> str:
  return '\n'.join(f'{" " * indent}{k}={v},' for k, v in arguments.items())


def _sharding(request: Request) -> str:
  if request.num_devices == 1:
    return ''
  return """\
      sharding=kd.sharding.ShardingStrategy(
          params=kd.sharding.FSDPSharding(),
          # Left to the compiler, a resumed run would round otherwise.
          opt_state=kd.sharding.FSDPSharding(min_size_to_shard_mb=0),
      ),
"""


def _keys(is_dpo: bool) -> str:
  keys = (
      dict(
          head='preds.head',
          reference='preds.reference.head',
          tokens='batch.target',
          sequence_mask='batch.loss_mask',
      )
      if is_dpo
      else dict(
          head='preds.head', labels='batch.target', mask='batch.loss_mask'
      )
  )
  lines = ''.join(f'    {k}="{v}",\n' for k, v in keys.items())
  return f'_KEYS = dict(\n{lines})\n'


def _losses(is_dpo: bool) -> str:
  if is_dpo:
    return """\
      train_losses={"dpo": g4.losses.DpoLoss(**_KEYS, tau=0.1)},
      train_metrics={"accuracy": g4.losses.DpoAccuracy(**_KEYS)},"""
  return """\
      train_losses={
          "xentropy": g4.losses.SoftmaxCrossEntropyWithIntLabels(**_KEYS),
      },"""
