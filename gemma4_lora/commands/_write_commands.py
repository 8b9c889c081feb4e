"""`fuse`, `export`, `quantize`: write a run, or its base, to files."""

from __future__ import annotations

from collections.abc import Mapping
import typing
from typing import Any

import click

from gemma4_lora.commands import _options
from gemma4_lora.commands import _values

if typing.TYPE_CHECKING:
  from gemma4_lora.jobs.command_line import _config

_max_shard_gb = click.option(
    '--max_shard_gb',
    type=_values.Float(0.0, min_open=True),
    default=5.0,
    show_default=True,
    metavar='GB',
    help='Size of a file of safetensors.',
)

_hf_files = click.option(
    '--hf_files',
    type=_values.Text(),
    metavar='DIR',
    help='Folder of the released model, whose tokenizer, chat template and'
    ' processor are copied beside safetensors. Default: the base.',
)


@_options.takes_config(
    'gemma4_lora fuse --cfg=my_config.py --workdir=/tmp/run --out=/tmp/fused',
    reads_run=True,
)
@_options.out('the model')
@click.option(
    '--format',
    type=click.Choice(['gemma', 'hf']),
    default='gemma',
    show_default=True,
    help='Released layout of gemma, or safetensors of Hugging Face.',
)
@_options.step
@_options.overwrite
@_max_shard_gb
@_hf_files
def fuse(config: _config.Config, *, format: str, **options: Any) -> None:
  """Write what the run trained, merged into its base.

  One leaf is in memory at a time.
  """
  if format != 'hf':
    _refuse({'--hf_files': options['hf_files']}, f'--format={format}')
  _write(config, format, who='gemma4_lora fuse', **options)


@_options.takes_config(
    'gemma4_lora export --cfg=my_config.py --workdir=/tmp/run --out=/tmp/lora',
    reads_run=True,
)
@_options.out('the folder')
@click.option(
    '--format',
    type=click.Choice(['peft', 'hf', 'hf_base']),
    default='peft',
    show_default=True,
    help='A PEFT folder, the merged model as safetensors, or the base as'
    ' safetensors.',
)
@_options.step
@_options.overwrite
@_max_shard_gb
@_hf_files
@_options.server('What will read the folder of --format=peft.', default='peft')
@click.option(
    '--base_model',
    type=_values.Text(),
    metavar='NAME',
    help='Name of the base model, for adapter_config.json: google/gemma-4-E2B-it,'
    ' or a folder.',
)
@click.option(
    '--experts',
    type=click.Choice(['stacked', 'per_expert']),
    help='How PEFT folders hold routed experts: see g4.hf.save_peft. Default: as'
    ' the server takes them.',
)
@click.option(
    '--base_model_class',
    default='Gemma4ForConditionalGeneration',
    show_default=True,
    metavar='CLASS',
    help='Class of transformers that loads the PEFT folder.',
)
def export(
    config: _config.Config,
    *,
    format: str,
    out: str,
    step: int,
    overwrite: bool,
    max_shard_gb: float,
    hf_files: str | None,
    server: str,
    base_model: str | None,
    experts: str | None,
    base_model_class: str,
) -> None:
  """Write the run's LoRA for a server, or its base as safetensors.

  --for=vllm, sglang, llama.cpp and mlx write the same numbers in the form which
  that server reads, or say what it cannot serve.
  """
  who = 'gemma4_lora export'
  of_peft = {'--base_model': base_model, '--experts': experts}
  if format != 'peft':
    server_given = None if server == 'peft' else server
    _refuse({'--for': server_given} | of_peft, f'--format={format}')
  else:
    _refuse({'--hf_files': hf_files}, '--format=peft')
  if server == 'mlx':
    _refuse(of_peft, '--for=mlx')
  if format != 'peft':
    _write(
        config,
        format,
        out=out,
        step=step,
        overwrite=overwrite,
        max_shard_gb=max_shard_gb,
        hf_files=hf_files,
        who=who,
    )
    return
  from gemma4_lora.runs import _export  # pylint: disable=g-import-not-at-top

  _export.export_lora(
      out,
      model=config.part('model'),
      workdir=config.workdir,
      step=step,
      overwrite=overwrite,
      server=server,
      base_model_class=base_model_class,
      base_model_name_or_path=base_model,
      experts=experts,
      who=who,
  )
  kind = 'Adapter of mlx-lm' if server == 'mlx' else 'PEFT folder'
  print(f'{out}: {kind} for {base_model_class}.')


@_options.takes_config(
    'gemma4_lora quantize --cfg=my_config.py --cfg.model.quantize=int4'
    ' --out=/tmp/int4'
)
@_options.out('the base')
@_options.overwrite
def quantize(config: _config.Config, *, out: str, overwrite: bool) -> None:
  """Write the base that the config restores, quantised as its model says.

  g4.ckpts.PartialLoad reads it again without quantising it.
  """
  from gemma4_lora.runs import _quantize  # pylint: disable=g-import-not-at-top

  print(
      _quantize.quantize_checkpoint(
          out,
          model=config.part('model'),
          init_transform=config.part('init_transform'),
          overwrite=overwrite,
          who='gemma4_lora quantize',
      )
  )


def _refuse(given: Mapping[str, str | None], choice: str) -> None:
  """Raises for options that would change nothing."""
  for name, value in given.items():
    if value is not None:
      raise click.UsageError(f'{choice} has no {name}={value}: leave it out.')


def _write(
    config: _config.Config,
    format: str,
    *,
    out: str,
    step: int,
    overwrite: bool,
    max_shard_gb: float,
    hf_files: str | None,
    who: str,
) -> None:
  """Writes a whole model."""
  from gemma4_lora.runs import _export  # pylint: disable=g-import-not-at-top

  print(
      _export.export(
          out,
          model=config.part('model'),
          init_transform=config.part('init_transform'),
          workdir=None if format == 'hf_base' else config.workdir,
          step=step,
          format='gemma' if format == 'gemma' else 'hf',
          overwrite=overwrite,
          max_shard_bytes=int(max_shard_gb * 1e9),
          hf_files=hf_files,
          who=who,
      )
  )
