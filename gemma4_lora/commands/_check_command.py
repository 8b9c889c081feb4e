"""`check`: checks a LoRA."""

from __future__ import annotations

import typing

import click

from gemma4_lora.commands import _options
from gemma4_lora.commands import _status
from gemma4_lora.commands import _values

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config

_WHO = 'gemma4_lora check'


@_options.takes_config(
    'gemma4_lora check --cfg=my_config.py --workdir=/tmp/run --peft=/tmp/lora',
    reads_run=True,
)
@click.option(
    '--peft',
    type=_values.Text(),
    metavar='FOLDER',
    help='A PEFT folder to compare.',
)
@_options.server('Also says what this server does with the PEFT folder.')
@_options.step
def check(
    config: _config.Config, *, peft: str | None, server: str | None, step: int
) -> int:
  """Say whether LoRA changes the model and is complete.

  In the run, in the PEFT folder, or in both. The exit status is 1 if not, or if
  the server of --for refuses the folder or answers with other numbers.
  """
  if server and not peft:
    raise click.UsageError('--for=... is about a folder: give --peft=FOLDER.')
  from gemma4_lora import g4  # pylint: disable=g-import-not-at-top
  from gemma4_lora.host import _escapes  # pylint: disable=g-import-not-at-top
  from gemma4_lora.runs import _export  # pylint: disable=g-import-not-at-top
  from gemma4_lora.servers import _lint  # pylint: disable=g-import-not-at-top

  model, lora, workdir = config.part('model'), None, None
  if config.value.get('workdir') or not peft:
    workdir = config.workdir
  with _status.Status(_WHO) as status:
    if peft:
      # Before reading the base, which takes longer. Without a run, the folder
      # says what is adapted.
      status.say(f'reads {peft}')
      try:
        loaded = g4.hf.load_peft(peft, model=model.model)
      except ValueError as e:
        status.clear()
        print(
            f'PROBLEM: {_escapes.escaped(str(e))}\nNOT OK: the folder cannot be'
            ' loaded.'
        )
        return 1
      if workdir is None:
        model, lora = loaded.model, loaded.params
    status.say(
        'reads the base' + ('' if workdir is None else f' and {workdir}')
    )
    params = _export.read_params(
        model=model,
        init_transform=config.part('init_transform'),
        workdir=workdir,
        lora=lora,
        step=step,
        who=_WHO,
    )
    status.say('looks at what LoRA changes')
    report = g4.nn.check(model, params, file=peft)
  print(_escapes.escaped(str(report)))
  if server is None or peft is None:
    return int(not report.ok)
  text, served = _lint.report(peft, server, model_config=model.config, who=_WHO)
  print(_escapes.escaped(text))
  return int(not (report.ok and served))
