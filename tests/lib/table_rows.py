"""Checks of rows of the table, whichever tower they are of."""

from collections.abc import Sequence

from gemma4_lora.gemma4 import _linears


def check_each_weight_once(rows: Sequence[_linears.Linear]) -> None:
  """Axes are in, out, batch or slot; the slots of a weight are all rows.

  And no two rows have one name, path of LoRA or name of Hugging Face.
  """
  for names in (
      [row.name for row in rows],
      [row.lora_path for row in rows],
      [name for row in rows if row.tower != 'text' for name in row.hf_names],
  ):
    assert len(set(names)) == len(names)
  slots = {}
  for row in rows:
    axes = [*row.in_axes, *row.out_axes, *row.batch_axes]
    if row.slot_axis is not None:
      axes.append(row.slot_axis)
    assert sorted(axes) == list(range(len(row.shape))), row
    slots.setdefault(row.path, []).append(row.slot)
  for row in rows:
    if row.slot is None:
      assert slots[row.path] == [None]
    else:
      assert slots[row.path] == list(range(row.shape[row.slot_axis]))
