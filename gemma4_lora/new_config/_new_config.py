"""Looks at the data, and writes the config."""

import math
import os
import pathlib
import re
from typing import Any

from gemma4_lora import data
from gemma4_lora.gemma4 import _sizes
from gemma4_lora.new_config import _config_text
from gemma4_lora.new_config import _proposed_task

_PREFIX = 'Gemma4_'


def write(
    file: str,
    *,
    model: str,
    path: str,
    method: str,
    topology: str,
    overwrite: bool,
) -> list[str]:
  """Writes a config for rows of a user.

  Args:
    file: The config's file.
    model: Name of the model: `E2B`, or `Gemma4_E2B`.
    path: The rows, as `g4.data.Files` takes them.
    method: One of `_config_text.METHODS`.
    topology: Chips, as `v6e:2x4`.
    overwrite: Whether an existing file may be replaced.

  Returns:
    Lines that say what it has found.

  Raises:
    FileExistsError: The file is there.
    ValueError: There is no such model or folder, or no task reads the rows.
  """
  if not file.endswith('.py'):
    raise ValueError(f'a config is a Python file: {file}.py?')
  # `python -m kauldron.main` reads it from this machine.
  if '://' in file or not os.path.isdir(os.path.dirname(file) or '.'):
    raise ValueError(
        f'{file}: there is no such folder on this machine. A config is a local'
        ' file.'
    )
  if os.path.isdir(file):
    raise ValueError(f'{file} is a folder.')
  if os.path.exists(file) and not overwrite:
    raise FileExistsError(
        f'{file} exists. Give another name, or --overwrite to replace it.'
    )
  rows: Any = data.Files(path=path, shuffle=False).data_source
  if not len(rows):
    raise ValueError(f'--data={path} has no rows.')
  try:
    proposal = _proposed_task.propose(rows, preference=method == 'dpo')
  except ValueError as e:
    raise ValueError(f'--data={path}: {e}') from e
  request = _config_text.Request(
      file=file,
      model=_class_name(model),
      data=path,
      method=method,
      topology=topology,
      num_devices=_num_devices(topology),
      num_rows=len(rows),
      proposal=proposal,
  )
  pathlib.Path(file).write_text(_config_text.text(request), encoding='utf-8')
  arguments = ', '.join(f'{k}={v!r}' for k, v in proposal.arguments.items())
  tried = min(len(rows), _proposed_task._NUM_ROWS)
  lines = [
      f'{path}: {len(rows)} rows. g4.data.{proposal.cls}({arguments}) reads'
      f' {proposal.num_read} of the first {tried}.'
  ]
  if proposal.reason:
    lines.append(f'Not the others: {proposal.reason}')
  return [*lines, f'{file}: {request.model}, {method}, {topology}.']


def _class_name(model: str) -> str:
  name = f'{_PREFIX}{model.removeprefix(_PREFIX)}'
  if name not in _sizes.NAMES:
    known = ', '.join(x.removeprefix(_PREFIX) for x in _sizes.NAMES)
    raise ValueError(f'--model={model} is none of {known}.')
  return name


def _num_devices(topology: str) -> int:
  """Returns how many devices a topology has: `v6e:2x4` 8, `cpu` 1."""
  sizes = topology.partition(':')[2]
  if not re.fullmatch(r'(\d+(x\d+)*)?', sizes):
    raise ValueError(
        f'--topology={topology} should be as v6e:2x4, v5p:2x2x1 or cpu:8.'
    )
  return math.prod(int(x) for x in sizes.split('x') if x)
