"""Makes a plan of a config."""

import dataclasses
import json
import os
import tempfile
from typing import Any

from kauldron import kd
from kauldron import konfig

from gemma4_lora.tpu import _advice
from gemma4_lora.tpu import _batch
from gemma4_lora.tpu import _cache
from gemma4_lora.tpu import _compile
from gemma4_lora.tpu import _errors
from gemma4_lora.tpu import _mesh
from gemma4_lora.tpu import _plan
from gemma4_lora.tpu import _shapes
from gemma4_lora.tpu import _topology


def plan(
    cfg: konfig.ConfigDict | kd.train.Trainer,
    *,
    topology: str = 'v6e:1x1',
    batch: int | None = None,
    length: int | None = None,
    with_logging: bool = False,
    cache: os.PathLike[str] | str | bool | None = True,
) -> _plan.Plan:
  """Returns the memory and time of a config's training step on a topology.

  Compiles the step that `kd.train.Trainer.train()` runs, with the config's own
  sharding, for chips that need not be present. Nothing of the model is
  allocated. A real model takes minutes.

  ```python
  plan = g4.tpu.plan(cfg, topology='v6e:1x1', batch=4, length=2048)
  plan.fits  # False
  plan  # In a notebook: a bar of the memory, and what to change.
  ```

  From a shell: `python -m gemma4_lora plan --cfg=... --topology=v6e:1x1`.

  Args:
    cfg: A config, or the Trainer that it resolves to. Plans of a Trainer are
      not kept, as its parts have no names.
    topology: Chips, `'v6e:1x1'`, `'v6e:2x4'`, `'v5e:4x4'`, `'v5p:2x2x1'`, which
      need `gemma4_lora[tpu]`; `'cpu'`, `'cpu:2'` or `'gpu'` for local devices.
    batch: Examples in a step, over all devices; default: the config's.
    length: Length of each example, in tokens; default: the config's.
    with_logging: Whether to compile the step that also returns losses, metrics
      and summaries, as the first step does.
    cache: Folder of earlier plans; True for `$XDG_CACHE_HOME/gemma4_lora/plans`
      (`~/.cache`); None for none.

  Raises:
    PlanError: The topology is invalid, has no compiler here, or cannot take the
      batch; or the shapes of the batch are unknown.
  """
  target = _topology.topology(topology)
  with _mesh.on_devices(target.devices):
    trainer, config = _resolved(cfg)
    shapes = _batch.batch_of(trainer, batch=batch, length=length)
    where, key = _cache.folder(cache), None
    if where is not None and config is not None:
      key = _cache.key_of(
          config,
          topology=topology,
          chip=dataclasses.asdict(target.chip),
          num_devices=len(target.devices),
          batch=repr(shapes),
          with_logging=with_logging,
      )
    if where is not None and key is not None:
      if (found := _cache.load(where, key)) is not None:
        return found
    made = _make(trainer, target, shapes, with_logging=with_logging)
  if where is not None and key is not None:
    _cache.save(where, key, made)
  return made


def _make(
    trainer: kd.train.Trainer,
    target: _topology.Topology,
    batch: _batch.Batch,
    *,
    with_logging: bool,
) -> _plan.Plan:
  arguments = _shapes.shapes_of(trainer, batch)
  step = _compile.compile_step(trainer, arguments, with_logging=with_logging)
  notes = [batch.note] if batch.note else []
  if not with_logging and (trainer.train_metrics or trainer.train_summaries):
    notes.append(
        'steps that log train_metrics and train_summaries may need more:'
        ' with_logging=True (--with_logging) plans one'
    )
  made = _plan.Plan(
      topology=target.name,
      chip=target.chip,
      num_devices=len(target.devices),
      batch=batch.batch,
      length=batch.length,
      sequences=batch.sequences,
      argument_bytes=arguments.bytes_per_device(),
      notes=tuple(notes),
      **{
          field.name: getattr(step, field.name)
          for field in dataclasses.fields(step)
      },
  )
  return dataclasses.replace(made, advice=_advice.advice_on(made, trainer))


def _resolved(cfg: Any) -> tuple[kd.train.Trainer, str | None]:
  """Returns the Trainer, and the config's text if there is a config."""
  if isinstance(cfg, kd.train.Trainer):
    return _mesh.moved(cfg), None
  if not isinstance(cfg, konfig.ConfigDict):
    raise _errors.PlanError(
        'g4.tpu.plan(cfg) takes a konfig.ConfigDict or a kd.train.Trainer. Got:'
        f' {type(cfg).__name__}'
    )
  config = cfg.to_json()
  cfg = konfig.ConfigDict(json.loads(config))  # Not to change the caller's.
  if cfg.get('workdir', 'unset') is None:
    cfg.workdir = tempfile.gettempdir()  # Nothing is written to it.
  trainer = konfig.resolve(cfg)
  if not isinstance(trainer, kd.train.Trainer):
    raise _errors.PlanError(
        'g4.tpu.plan(cfg) takes the config of a kd.train.Trainer. This one is'
        f' of: {type(trainer).__name__}'
    )
  return trainer, config
