"""The change of each base leaf by a run's LoRA."""

from collections.abc import Mapping
from typing import Any

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.gemma4 import _names
from gemma4_lora.gemma4 import _upstream
from gemma4_lora.nn import _fuse
from gemma4_lora.runs import _model_base
from gemma4_lora.runs import _run


def changes(run: _run.Run, *, who: str) -> dict[str, _fuse.Change]:
  """Returns LoRA's change of each leaf."""
  _fuse.check_lora(run.model, run.lora, who=who)
  check_settings(run.model, run.lora, run.fingerprint, where=run.where, who=who)
  base = _upstream.abstract_params(run.model.model)
  changes = _fuse.changes_of(run.model, base, run.lora)
  shapes = {linear.row.lora_path: linear for linear in run.model.adapted}
  for path, linear in shapes.items():
    leaves = _trees.get_at(run.lora, tuple(path.split('.')))
    for name, shape in linear.shapes.items():
      if leaves[name].shape != shape:
        raise ValueError(
            f'{who}: {path}.{name} is {leaves[name].shape} in the run and'
            f' {shape} in the config. Set rank= and the model back to those of'
            ' the run.'
        )
  there = {leaf.path for leaf in run.leaves if leaf.place is not None}
  lacking = [path for path in changes if path not in there]
  if lacking:
    raise ValueError(
        f'{who}: LoRA changes {len(lacking)} leaves that the base does not have:'
        f' {", ".join(lacking[:3])}. It is in {run.where}.'
    )
  return changes


def check_settings(
    model: Any,
    lora: Mapping[str, Any],
    saved: _fingerprint.Fingerprint | None,
    *,
    where: str,
    who: str,
) -> None:
  """Raises if the config's LoRA settings differ from the run's.

  Args:
    model: The config's model.
    lora: The run's LoRA leaves.
    saved: The run's fingerprint, if it has one.
    where: The run, for messages.
    who: The command, for messages.
  """
  if saved is None:
    return
  params = _trees.merge(_model_base.abstract(model), lora)
  current = _fingerprint.describe(model, params, content=False)
  # gemma makes leaves of towers only when init is given their input.
  names = saved['base']['leaves']
  current['base']['leaves'] = {
      name: spec
      for name, spec in current['base']['leaves'].items()
      if name in names or not _names.tower_of(tuple(name.split('.')))
  }
  _fingerprint.check(saved, current, who=who, where=where)
