"""Digests of a step's small items: the position in the data, and timings.

Their files have no checksum: with a changed digit of a position, the run would
go on from other data.
"""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
import json
from typing import Any

from etils import epath
import jax
import orbax.checkpoint as ocp

from gemma4_lora.host import _intact

_PRIMARY = 0


def digests(args: Mapping[str, Any]) -> dict[str, str]:
  """Returns the digests of the files that Orbax will write.

  Args:
    args: Arguments of each item. Only those of JSON are looked at.
  """
  return {file: _intact.json_digest(x) for file, x in _contents(args)}


def check(
    folder: epath.Path, saved: Mapping[str, str], names: Collection[str]
) -> None:
  """Checks that items equal those that were saved.

  Args:
    folder: A step.
    saved: The result of `digests`; empty for older files.
    names: Items to look at.

  Raises:
    ValueError: One is not.
  """
  if jax.process_index() != _PRIMARY:
    return  # The file of the digests.
  for file, digest in saved.items():
    if file.partition('/')[0] not in names:
      continue
    try:
      now = _intact.json_digest(json.loads((folder / file).read_bytes()))
    except FileNotFoundError as e:
      raise ValueError(
          f'{folder} is a part of a checkpoint: {folder / file} is not there.'
          ' Copy that step again; or remove its folder, to go on from the step'
          ' before.'
      ) from e
    except ValueError as e:
      now = f'none: {e}'
    if now != digest:
      raise ValueError(
          f'{folder / file} is damaged: its digest is {now}, and was {digest} when'
          ' it was saved. Copy that step again; or remove its folder, to go on'
          ' from the step before.'
      )


def _contents(args: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
  """Yields the file of each item, and its future content."""
  for name, arg in args.items():
    item = getattr(arg, 'item', None)
    if isinstance(arg, ocp.args.JsonSave):
      yield f'{name}/metadata', _as_json(item)
    elif hasattr(item, 'get_state'):  # grain's handler calls it.
      file = f'process_{jax.process_index()}-of-{jax.process_count()}.json'
      yield f'{name}/{file}', _as_json(item.get_state())


def _as_json(value: Any) -> Any:
  """Returns a value as it comes back from a file."""
  if isinstance(value, bytes):
    return json.loads(value)
  return json.loads(json.dumps(value))
