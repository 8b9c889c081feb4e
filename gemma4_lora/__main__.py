r"""Commands for a shell.

```sh
python -m gemma4_lora summary --cfg=configs/gemma4_e2b_lora_mtnt.py \
    --cfg.model.rank=8
```

prints what a config's LoRA adapts, without allocating the model.

```sh
python -m gemma4_lora fuse --cfg=… --cfg.workdir=/tmp/run --out=/tmp/fused
```

writes what the run trained, fused into its base: for gemma, or, with
`--format=hf`, as safetensors of Hugging Face. One leaf is in memory at a time.

```sh
python -m gemma4_lora quantize --cfg=… --out=/tmp/int4
```

writes the base that the config restores, quantised as its model says; it is
read again without quantising it.

```sh
python -m gemma4_lora export --cfg=… --cfg.workdir=/tmp/run --out=/tmp/lora
```

writes its LoRA alone as a PEFT folder; with `--format=hf_base` the base alone as
safetensors.

```sh
python -m gemma4_lora check --cfg=… --cfg.workdir=/tmp/run --peft=/tmp/lora
```

says whether the run's LoRA changes the model and is all there, in the run and in
the folder. Either may be left out. It exits with 1 if not.

```sh
python -m gemma4_lora chat --cfg=… --cfg.workdir=/tmp/run
```

talks to the run's model: each line of the input is a turn, and `/base` asks the
base in its place. With a pipe for input, answers alone are on stdout.

```sh
python -m gemma4_lora show --cfg=… --rows=5
```

prints what the config trains on: counts of rows and tokens, how many are
malformed and why, and the first rows, coloured by what is trained; with
`--malformed` the malformed ones. It exits with 1 if training would stop.

```sh
python -m gemma4_lora plan --cfg=configs/gemma4_e2b_lora_mtnt.py \
    --topology=v6e:1x1 --batch=4 --length=2048
```

compiles the config's training step for chips that need not be here, and says
what it needs of them. With `--sweep`: which batch and which length are the
largest that fit. It exits with 0 if the step fits (with `--sweep`: if any does),
with 1 if not, and with 2 if there is no answer.

```sh
python -m gemma4_lora vertex --cfg=configs/gemma4_e2b_lora_mtnt.py \
    --topology=v6e:1x1 --region=us-east5 --workdir=gs://bucket/run --dry-run
```

plans the same, and prints the job that trains the config on Vertex AI; without
`--dry-run` submits it. A config that does not fit is not submitted (exit status
1; 2 if there is no answer), but with `--force`.

```sh
python -m gemma4_lora train --cfg=… --cfg.workdir=/tmp/run
```

trains a config as `python -m kauldron.main` does, with its flags, and on several
hosts where the environment says that there are several.

```sh
python -m gemma4_lora doctor
```

looks at versions, devices, credentials, memory and disk, and says what to type. It
exits with 1 if something is wrong, and imports nothing that may be broken.

Whatever else a command lacks or cannot do is a line on stderr, and exit status 1.
"""

from collections.abc import Sequence
import difflib
import itertools
import sys
from typing import Any

if __name__ == '__main__':
  # Before anything below is imported, which may be what is broken.
  if sys.argv[1:2] == ['doctor']:
    from gemma4_lora.doctor import _command as doctor

    sys.exit(doctor.main(sys.argv[2:]))
  import gemma4_lora.quiet  # noqa: F401

from absl import app
from absl import flags
from absl import logging
from kauldron import konfig

from gemma4_lora import g4
from gemma4_lora.data.reports import _show_flags
from gemma4_lora.host import _storage_errors
from gemma4_lora.jobs import _flags as _job_flags
from gemma4_lora.jobs.command_line import _arguments
from gemma4_lora.jobs.command_line import _config_file
from gemma4_lora.runs import _chat_flags

_CONFIG = konfig.DEFINE_config_file(
    'cfg', None, 'Config of the run.', lock_config=False
)
_OUT = flags.DEFINE_string('out', None, 'Folder to write.')
_STEP = flags.DEFINE_integer(
    'step', -1, 'Which checkpoint of the run; -1 for the last.', lower_bound=-1
)
_FORMAT = flags.DEFINE_string(
    'format',
    None,
    'fuse: gemma (default) or hf. export: peft (default), hf (as fuse), or'
    ' hf_base (without LoRA).',
)
_OVERWRITE = flags.DEFINE_bool(
    'overwrite', False, 'Replace --out if it exists.'
)
_MAX_SHARD_GB = flags.DEFINE_float(
    'max_shard_gb', 5.0, 'Size of a file of safetensors, in GB.'
)
_EXPERTS = flags.DEFINE_enum(
    'experts', 'stacked', ['stacked', 'per_expert'], 'See g4.hf.save_peft.'
)
_BASE_MODEL_CLASS = flags.DEFINE_string(
    'base_model_class',
    'Gemma4ForConditionalGeneration',
    'Class of transformers that loads the PEFT folder.',
)
_PEFT = flags.DEFINE_string('peft', None, 'check: a PEFT folder.')
_TOPOLOGY = flags.DEFINE_string(
    'topology',
    'v6e:1x1',
    'plan, vertex: chips, such as v6e:2x4, v5e:4x4, v5p:2x2x1, tpu7x:2x2x1;'
    ' plan: cpu, cpu:8 or gpu, too.',
)
_SWEEP = flags.DEFINE_bool(
    'sweep', False, 'plan: search the largest batch and length that fit.'
)
_BATCH = flags.DEFINE_integer(
    'batch', None, "plan: sequences in a step, in place of the config's."
)
_LENGTH = flags.DEFINE_integer(
    'length', None, "plan: of each, in tokens, in place of the config's."
)
_WITH_LOGGING = flags.DEFINE_bool(
    'with_logging', False, 'plan: the step that returns metrics too.'
)
_CACHE = flags.DEFINE_string(
    'cache',
    None,
    'plan: folder of earlier plans; "none" for none. Default:'
    ' $XDG_CACHE_HOME/gemma4_lora/plans, or ~/.cache.',
)


def main(argv: Sequence[str]) -> None:
  """Runs a command; what the user has to change is one line and no traceback."""
  try:
    _main(argv)
  except Exception as e:
    line = _told(e)
    if line is None:
      raise
    _arguments.end(line)


def _main(argv: Sequence[str]) -> None:
  names = argv[1:]
  if len(names) != 1 or names[0] not in _COMMANDS:
    close = difflib.get_close_matches(' '.join(names), _COMMANDS)
    hint = f' Did you mean {close[0]!r}?' if close else ''
    raise app.UsageError(
        f'Give one command of {sorted(_COMMANDS)}. Got: {names}.{hint}'
    )
  if not flags.FLAGS['cfg'].present and names != ['doctor']:
    raise app.UsageError('--cfg=... is missing: the config of the run.')
  if names != ['doctor']:
    _config_file.read(
        flags.FLAGS['cfg'], overrides=_arguments.overrides(sys.argv)
    )
  if not flags.FLAGS['verbosity'].present:
    logging.set_verbosity(logging.WARNING)  # Orbax has much to say.
  _COMMANDS[names[0]]()


def _told(e: Exception) -> str | None:
  """Returns the message of an error that is for the user; None if it has none."""
  if isinstance(e, app.UsageError):
    return str(e)
  if line := _config_file.explain_resolved(e):
    return line
  if isinstance(e, _config_file.OF_USERS) and _config_file.is_ours(e):
    return str(e)
  if explained := _storage_errors.explain(e):
    return str(explained)
  return None


def _doctor() -> None:
  raise app.UsageError('doctor takes no flags: python -m gemma4_lora doctor')


def _summary() -> None:
  print(g4.nn.summary(_resolved('model')))


def _fuse() -> None:
  _write(_format('fuse', ('gemma', 'hf')), who='gemma4_lora fuse')


def _export() -> None:
  who = 'gemma4_lora export'
  name = _format('export', ('peft', 'hf', 'hf_base'))
  if name != 'peft':
    _write(name, who=who)
    return
  from gemma4_lora.runs import _export as export_lib  # pylint: disable=g-import-not-at-top

  export_lib.export_peft(
      _out(),
      model=_resolved('model'),
      workdir=_workdir(),
      step=_STEP.value,
      overwrite=_OVERWRITE.value,
      base_model_class=_BASE_MODEL_CLASS.value,
      experts=_EXPERTS.value,
      who=who,
  )
  print(f'{_out()}: PEFT folder for {_BASE_MODEL_CLASS.value}.')


def _quantize() -> None:
  from gemma4_lora.runs import _quantize as quantize_lib  # pylint: disable=g-import-not-at-top

  print(
      quantize_lib.quantize_checkpoint(
          _out(),
          model=_resolved('model'),
          init_transform=_resolved('init_transform'),
          overwrite=_OVERWRITE.value,
          who='gemma4_lora quantize',
      )
  )


def _check() -> None:
  """Exits with 1 if something is wrong."""
  from gemma4_lora.runs import _export as export_lib  # pylint: disable=g-import-not-at-top

  model, lora, workdir = _resolved('model'), None, None
  if _given_workdir() or not _PEFT.value:
    workdir = _workdir()
  else:  # The file alone: what it adapts is what it says.
    try:
      loaded = g4.hf.load_peft(_PEFT.value, model=model.model)
    except ValueError as e:
      print(f'PROBLEM: {e}\nNOT OK: the folder cannot be loaded.')
      sys.exit(1)
    model, lora = loaded.model, loaded.params
  params = export_lib.read_params(
      model=model,
      init_transform=_resolved('init_transform'),
      workdir=workdir,
      lora=lora,
      step=_STEP.value,
      who='gemma4_lora check',
  )
  report = g4.nn.check(model, params, file=_PEFT.value)
  print(report)
  sys.exit(not report.ok)


def _chat() -> None:
  """Exits with 1 if a line had no answer."""
  from gemma4_lora.runs import _chat as chat_lib  # pylint: disable=g-import-not-at-top

  sys.exit(
      chat_lib.run(
          _CONFIG.value,
          model=_resolved('model'),
          init_transform=_resolved('init_transform'),
          workdir=_workdir(),
          step=_STEP.value,
          **_chat_flags.arguments(),
      )
  )


def _show() -> None:
  """Exits with 1 if too many rows are malformed."""
  from gemma4_lora.data.reports import _show_command  # pylint: disable=g-import-not-at-top

  arguments = _show_flags.arguments()
  sys.exit(not _show_command.run(_CONFIG.value, **arguments))


def _plan() -> None:
  """Exits with 1 if the step does not fit, with 2 if that is not known."""
  from gemma4_lora.tpu import _plan_command  # pylint: disable=g-import-not-at-top

  sys.exit(
      _plan_command.run(
          _CONFIG.value,
          topology=_TOPOLOGY.value,
          with_sweep=_SWEEP.value,
          batch=_BATCH.value,
          length=_LENGTH.value,
          with_logging=_WITH_LOGGING.value,
          cache=_CACHE.value,
      )
  )


def _train() -> None:
  raise app.UsageError(
      "train comes before its flags, which are Kauldron's: python -m gemma4_lora"
      ' train --cfg=...'
  )


def _run_train(argv: Sequence[str]) -> None:
  """Leaves flags and all to Kauldron."""
  modules = (globals(), vars(_job_flags), vars(_chat_flags), vars(_show_flags))
  for value in itertools.chain(*(module.values() for module in modules)):
    if isinstance(value, flags.FlagHolder):
      # It has one of the same name, or none, and should say so.
      delattr(flags.FLAGS, value.name)
  from gemma4_lora.jobs import _train as train_lib  # pylint: disable=g-import-not-at-top

  train_lib.run(argv)


def _vertex() -> None:
  """Exits as `plan` does, if that is why nothing is submitted."""
  from gemma4_lora.jobs import _vertex_command  # pylint: disable=g-import-not-at-top

  if _job_flags.DOCKERFILE.value:
    _vertex_command.print_dockerfile(_job_flags.config(_CONFIG))
    return
  sys.exit(
      _vertex_command.run(
          _CONFIG.value,
          _job_flags.request(_CONFIG, _TOPOLOGY.value),
          plan=_job_flags.PLAN.value,
          force=_job_flags.FORCE.value,
          cache=_CACHE.value,
      )
  )


def _write(name: str, *, who: str) -> None:
  """Writes a whole model."""
  # Not at the top: `summary` needs no checkpoints.
  from gemma4_lora.runs import _export as export_lib  # pylint: disable=g-import-not-at-top

  print(
      export_lib.export(
          _out(),
          model=_resolved('model'),
          init_transform=_resolved('init_transform'),
          workdir=None if name == 'hf_base' else _workdir(),
          step=_STEP.value,
          format='gemma' if name == 'gemma' else 'hf',
          overwrite=_OVERWRITE.value,
          max_shard_bytes=int(_MAX_SHARD_GB.value * 1e9),
          who=who,
      )
  )


def _resolved(name: str) -> Any:
  """Returns a part of the config: the run's data may not be at hand here."""
  cfg: Any = _CONFIG.value
  return konfig.resolve(cfg[name]) if cfg.get(name) is not None else None


def _workdir() -> str:
  workdir = _given_workdir()
  if not workdir:
    raise app.UsageError('--cfg.workdir=... is missing: the folder of the run.')
  return workdir


def _given_workdir() -> str | None:
  cfg: Any = _CONFIG.value
  return _job_flags.workdir(_CONFIG) or cfg.get('workdir')


def _out() -> str:
  if not _OUT.value:
    raise app.UsageError('--out=... is missing: the folder to write.')
  return _OUT.value


def _format(command: str, choices: Sequence[str]) -> str:
  name = _FORMAT.value or choices[0]
  if name not in choices:
    raise app.UsageError(
        f'{command} --format takes one of {list(choices)}. Got: {name!r}.'
    )
  return name


_COMMANDS = {
    'chat': _chat,
    'check': _check,
    'doctor': _doctor,
    'export': _export,
    'fuse': _fuse,
    'plan': _plan,
    'quantize': _quantize,
    'show': _show,
    'summary': _summary,
    'train': _train,
    'vertex': _vertex,
}


if __name__ == '__main__':
  if sys.argv[1:2] == ['train']:
    _run_train(sys.argv[2:])
  else:
    app.run(main, flags_parser=_arguments.parse)
