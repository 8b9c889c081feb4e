"""`chat`: talk to a run."""

from __future__ import annotations

import typing

import click

from gemma4_lora.commands import _options
from gemma4_lora.commands import _values

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config


@_options.takes_config(
    'gemma4_lora chat --cfg=my_config.py --workdir=/tmp/run', reads_run=True
)
@click.option(
    '--peft',
    type=_values.Text(),
    metavar='FOLDER',
    help="A PEFT folder, in place of a run's LoRA.",
)
@click.option(
    '--merged',
    type=_values.Text(),
    metavar='FOLDER',
    help='What fuse, or export --format=hf, has written, in place of a run.',
)
@click.option(
    '--prompt',
    type=_values.Text(),
    metavar='TEXT',
    help='Print the answer to this text, and end.',
)
@click.option(
    '--lora/--nolora',
    'with_lora',
    default=True,
    show_default=True,
    help='Begin with LoRA on, or with the base.',
)
@click.option(
    '--max_new_tokens',
    type=_values.Int(1),
    default=512,
    show_default=True,
    metavar='N',
    help='Tokens of an answer.',
)
@click.option(
    '--cache_length',
    type=_values.Int(1),
    default=4096,
    show_default=True,
    metavar='N',
    help='Tokens of the conversation.',
)
@click.option(
    '--temperature',
    type=_values.Float(0.0),
    default=0.0,
    show_default=True,
    help='0 for the most likely token.',
)
@_options.step
def chat(
    config: _config.Config,
    *,
    peft: str | None,
    merged: str | None,
    prompt: str | None,
    step: int,
    with_lora: bool,
    max_new_tokens: int,
    cache_length: int,
    temperature: float,
) -> int:
  """Talk to a run, a PEFT folder or a merged model: each line is a turn.

  /base asks the base in its place, /lora the run again, /new forgets the
  conversation. With a pipe for input, answers alone are on stdout. The exit
  status is 1 if a line had no answer.
  """
  if peft and merged:
    raise click.UsageError('--peft and --merged are two models: give one.')
  from gemma4_lora.runs import _chat  # pylint: disable=g-import-not-at-top

  return _chat.run(
      config.value,
      model=config.part('model'),
      init_transform=config.part('init_transform'),
      workdir=None if peft or merged else config.workdir,
      peft=peft,
      merged=merged,
      prompt=prompt,
      step=step,
      with_lora=with_lora,
      max_new_tokens=max_new_tokens,
      cache_length=cache_length,
      temperature=temperature,
  )
