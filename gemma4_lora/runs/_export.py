"""Writes a run as one model, its base fused with its LoRA, leaf by leaf."""

import dataclasses
from typing import Any
from typing import Literal

from etils import epath
import jax
from kauldron import kd

from gemma4_lora import _trees
from gemma4_lora import hf
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.hf.weights import _shards
from gemma4_lora.host import _devices
from gemma4_lora.host.folders import _new_folder
from gemma4_lora.nn import _fuse
from gemma4_lora.quant import _arrays
from gemma4_lora.runs import _changes
from gemma4_lora.runs import _fused_leaves
from gemma4_lora.runs import _model_base
from gemma4_lora.runs import _run
from gemma4_lora.runs import _write_orbax
from gemma4_lora.runs import _write_safetensors

Format = Literal['gemma', 'hf']


def export(
    out: epath.PathLike,
    *,
    model: Any,
    init_transform: Any,
    workdir: epath.PathLike | None,
    step: int = -1,
    format: Format = 'gemma',
    overwrite: bool = False,
    max_shard_bytes: int = _shards.MAX_SHARD_BYTES,
    hf_files: epath.PathLike | None = None,
    who: str,
) -> str:
  """Writes the base of a run with its LoRA fused in, one leaf in memory.

  Args:
    out: Folder to make. It appears under its name once it is complete.
    model: The config's model.
    init_transform: The config's `init_transform=`: where the base comes from.
    workdir: The run's workdir; None for the base alone.
    step: Which checkpoint of the run; -1 for the last.
    format: Orbax in the released nested layout, or safetensors of transformers.
    overwrite: Whether to replace the folder if there is one.
    max_shard_bytes: The most bytes of a safetensors file.
    hf_files: Folder of the released model, for the tokenizer and chat template
      beside safetensors; default: the base's, if it is in that layout.
    who: The command, for messages.

  Returns:
    What was written, for people.

  Raises:
    FileExistsError: There is something at `out`, and not `overwrite`.
    FileNotFoundError: There is no checkpoint, or no folder at `hf_files`.
    ValueError: Run, base and config do not fit, or `hf_files` is of another model.
  """
  out = _new_folder.check_free(
      out,
      overwrite=overwrite,
      who=who,
      how='--overwrite',
      by_orbax=format == 'gemma',
  )
  if hf_files is not None:
    _write_safetensors.check_folder(hf_files, who=who)
  run = _run.open_run(
      model, init_transform, workdir=workdir, step=step, who=who
  )
  fused = _fused_leaves.FusedLeaves(run, who=who)
  with _new_folder.new_folder(out, overwrite=overwrite, who=who) as folder:
    if format == 'gemma':
      _write_orbax.write(folder, run.leaves, fused)
      note = 'Open it with gm.ckpts.load_params, or gm.ckpts.LoadCheckpoint.'
    else:
      note = _write_safetensors.write(
          folder,
          run,
          fused,
          max_shard_bytes=max_shard_bytes,
          hf_files=hf_files,
          who=who,
      )
    quantized = ''
    if fused.num_quantized:
      quantized = (
          f', {fused.num_quantized} quantised as in the run and dequantised'
      )
    size = sum(x.stat().st_size for x in folder.rglob('*') if x.is_file())
  return (
      f'{out}: {len(run.leaves)} leaves, {size / 1e9:.3f} GB, LoRA in'
      f' {fused.num_changed} of them{quantized}. Base and LoRA: {run.where}.'
      f' {note}'
  )


def export_lora(
    out: epath.PathLike,
    *,
    model: Any,
    workdir: epath.PathLike,
    step: int = -1,
    overwrite: bool = False,
    server: str = 'peft',
    who: str,
    **kwargs: Any,
) -> None:
  """Writes the LoRA of a run as the folder that a server reads.

  Args:
    out: Folder to make.
    model: The config's model.
    workdir: The run's workdir.
    step: Which checkpoint of the run; -1 for the last.
    overwrite: Whether to replace the folder if there is one.
    server: Its name: see `gemma4_lora/servers`.
    who: The command, for messages.
    **kwargs: Other arguments of `g4.hf.save_peft`; of `g4.hf.save_mlx`, those that
      it has.

  Raises:
    FileExistsError: There is something at `out`, and not `overwrite`.
    FileNotFoundError: There is no checkpoint.
    ValueError: Run and config do not fit, or the server refuses the LoRA.
  """
  _new_folder.check_free(out, overwrite=overwrite, who=who, how='--overwrite')
  params, fingerprint = _lora_item.read_lora(workdir, step=step, who=who)
  _fuse.check_lora(model, params, who=who)
  _changes.check_settings(
      model, params, fingerprint, where=str(workdir), who=who
  )
  given = {'model': model, 'params': params, 'overwrite': overwrite}
  if server == 'mlx':
    hf.save_mlx(out, **given, base_model_class=kwargs['base_model_class'])
  else:
    hf.save_peft(out, **given, **kwargs | {'server': server})


def read_params(
    *,
    model: Any,
    init_transform: Any,
    workdir: epath.PathLike | None,
    lora: Any = None,
    step: int = -1,
    who: str,
) -> dict[str, Any]:
  """Reads all parameters of a run: its base, as it had it, and its LoRA.

  Args:
    model: A `g4.nn.LoRA`.
    init_transform: The config's `init_transform=`: where the base comes from.
    workdir: The run's workdir; None with `lora`.
    lora: LoRA leaves from elsewhere, nested.
    step: Which checkpoint of the run; -1 for the last.
    who: The command, for messages.

  Raises:
    FileNotFoundError: There is no checkpoint.
    ValueError: Run, base and config do not fit.
  """
  run = _run.open_run(
      model, init_transform, workdir=workdir, step=step, check=False, who=who
  )
  if lora is not None:
    run = dataclasses.replace(run, lora=lora)
  return params_of(run, who=who)


def params_of(
    run: _run.Run, *, sharding: Any = None, who: str
) -> dict[str, Any]:
  """Reads all parameters of a run: its base, as it had it, and its LoRA.

  Args:
    run: The run.
    sharding: Sharding of the parameters, see `kd.sharding.ShardingStrategy`;
      default: on one device.
    who: The command, for messages.

  Raises:
    ValueError: The base is not what LoRA was trained on.
  """
  params: Any = run.lora
  shapes = _model_base.abstract(run.model)
  if sharding is not None:
    shapes = kd.sharding.with_sharding_constraint(shapes, sharding)
  wanted = _trees.flatten(shapes, is_leaf=_arrays.is_quantized)
  leaves = [x for x in run.leaves if tuple(x.path.split('.')) in wanted]
  for group in _fused_leaves.FusedLeaves(run, who=who, unfused=True).read(
      leaves
  ):
    for leaf, array in group:
      if _arrays.is_quantized(array):
        if sharding is not None:
          like = wanted[tuple(leaf.path.split('.'))]
          array = jax.tree.map(_devices.place, array, like)
      elif sharding is None:
        array = jax.numpy.asarray(array, leaf.model_dtype)
      else:
        array = _devices.place(array, wanted[tuple(leaf.path.split('.'))])
      tree: Any = array
      for key in reversed(leaf.path.split('.')):
        tree = {key: tree}
      params = _trees.merge(tree, params)
  return jax.tree.map(jax.numpy.asarray, params)
