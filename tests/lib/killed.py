"""Processes that write again and again, and die while they do.

Each writes values that tell its rounds apart, and says when one is on disk.
"""

from collections.abc import Callable
from collections.abc import Iterator
import itertools
import os
import pathlib
import random
import signal
import sys
from typing import Any

import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron.train import checkpoint_state
import numpy as np
import optax
import orbax.checkpoint as ocp

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.lora import _lora_file
from gemma4_lora.ckpts.lora import _lora_item
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.runs import _export
from tests.lib import models
from tests.lib import random_params
from tests.lib import runs
from tests.lib import states

# Python's audit events for what changes files.
_CHANGES = {'open', 'os.link', 'os.mkdir', 'os.remove', 'os.rename', 'os.rmdir'}
_FOLDER = 'written'
_RELEASED = 'released'
_RUN = 'run'
_LORA = {'targets': 'q', 'rank': 2, 'alpha': 4.0}


def prepare(folder: pathlib.Path) -> None:
  """Writes what the processes read: a base, and a run with one step."""
  base = g4.testing.make_checkpoint(_base(), folder / _RELEASED)
  _, save = next(_saves(folder / _RUN, folder / _RELEASED, base))
  save()


def work(kind: str, folder: pathlib.Path, seed: int | None, says: Any) -> None:
  """Is a process: writes, and kills itself while it writes again.

  Between two operations on files, so that each is as likely: by the clock, most
  kills would meet no write.

  Args:
    kind: One of `KINDS`.
    folder: Where `prepare` was.
    seed: Says when; None to write once.
    says: End of a pipe: gets each round that is on disk.
  """
  operations = _Operations(folder)
  for i, write in KINDS[kind][0](folder):
    write()
    says.send(i)
    if seed is None:
      return
    if operations.last is None:  # In the next round, or one after it.
      more = random.Random(seed).randint(1, operations.count)
      operations.last = operations.count + more


class _Operations:
  """Counts what a process does to files in a folder, and kills it at one.

  Attributes:
    count: How many there were.
    last: Before which of them the process dies; None to live.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = os.fspath(folder.resolve())
    self._resolved = os.fspath(folder)
    self.count, self.last = 0, None
    sys.addaudithook(self._see)

  def _see(self, event: str, args: tuple[Any, ...]) -> None:
    if event not in _CHANGES or not args:
      return
    if event == 'open' and not args[2] & (os.O_WRONLY | os.O_RDWR):
      return
    if not str(args[0]).startswith((self._folder, self._resolved)):
      return
    self.count += 1
    if self.count == self.last:
      os.kill(os.getpid(), signal.SIGKILL)


def _base() -> Any:
  return models.base(cut=models.one_layer)


def _lora(**kwargs: Any) -> g4.nn.LoRA:
  return g4.nn.LoRA(model=_base(), **_LORA | kwargs)


def _filled(params: Any, i: int) -> Any:
  """Returns parameters with all of LoRA at one number."""
  return jax.tree_util.tree_map_with_path(
      lambda keys, x: random_params.on_device(np.full(x.shape, i, x.dtype))
      if _trees.is_lora(_trees.key_path(keys))
      else x,
      params,
  )


Rounds = Iterator[tuple[int, Callable[[], Any]]]


def _trainer(workdir: pathlib.Path, released: Any) -> kd.train.Trainer:
  return runs.trainer(
      workdir,
      released,
      base=_base(),
      lora=_LORA,
      options={'max_to_keep': 2},
      optimizer=runs.partial(optax.sgd(0.1)),
  )


def _saves(workdir: pathlib.Path, released: Any, base: Any = None) -> Rounds:
  """Steps of a run: each is saved, and one before it deleted."""
  trainer = _trainer(workdir, released)
  state = runs.state(trainer, seed=1, params=base)
  saver = trainer.checkpointer
  first = (saver.latest_step or 0) + 1

  def save(i):
    params = _filled(state.params, i)
    saver.save(state.replace(params=params, step=jnp.asarray(i)), step=i)
    saver.wait_until_finished()

  for i in itertools.count(first):
    yield i, lambda i=i: save(i)


def _of_a_run(folder: pathlib.Path) -> Rounds:
  base = random_params.make(_base())
  return _saves(folder / _FOLDER, folder / _RELEASED, base)


def _save_peft(folder: pathlib.Path) -> Rounds:
  model = _lora()
  params = random_params.make(model)
  for i in itertools.count(_newest(folder, check_peft) + 1):
    yield (
        i,
        lambda i=i: g4.hf.save_peft(
            folder / _FOLDER,
            model=model,
            params=_filled(params, i),
            overwrite=True,
        ),
    )


def _save_lora(folder: pathlib.Path) -> Rounds:
  model = _lora()
  params = random_params.make(model)
  for i in itertools.count(_newest(folder, check_lora) + 1):
    yield (
        i,
        lambda i=i: g4.ckpts.save_lora(
            folder / _FOLDER,
            model=model,
            params=_filled(params, i),
            overwrite=True,
        ),
    )


def _save_quantized(folder: pathlib.Path) -> Rounds:
  model = _lora(quantize='int8')
  load = g4.ckpts.PartialLoad(path=folder / _RELEASED)
  shapes = jax.eval_shape(
      model.init, jax.random.key(0), jnp.ones((1, 4), jnp.int32)
  )['params']
  params = load.transform(states.wrap(_filled(shapes, 0))).params
  for i in itertools.count(1):
    yield (
        i,
        lambda: g4.ckpts.save_quantized(
            folder / _FOLDER, model=model, params=params, overwrite=True
        ),
    )


def _exports(format_: str) -> Callable[[pathlib.Path], Rounds]:
  def rounds(folder: pathlib.Path) -> Rounds:
    model = _lora()
    load = g4.ckpts.PartialLoad(path=folder / _RELEASED)
    for i in itertools.count(1):
      yield (
          i,
          lambda: _export.export(
              folder / _FOLDER,
              model=model,
              init_transform=g4.ckpts.SkipLoRA4(wrapped=load, model=model),
              workdir=folder / _RUN,
              format=format_,
              overwrite=True,
              who='fuse',
          ),
      )

  return rounds


def _resumes(folder: pathlib.Path) -> Rounds:
  """A run that starts from its step, and ends before it does one."""
  trainer = _trainer(folder / _FOLDER, folder / _RELEASED)
  state = runs.state(trainer, seed=1)
  item = checkpoint_state.CheckpointState(
      state, trainer._chrono, iter(trainer.train_ds)  # pylint: disable=protected-access
  )
  if not trainer.checkpointer.latest_step:
    # Another one, as it frees what it takes.
    state = trainer.init_transform.transform(runs.state(trainer, seed=1))
    state = state.replace(params=_filled(state.params, 1))
    trainer.checkpointer.save(_lora_item.with_train_state(item, state), step=1)
    trainer.checkpointer.close()

  def resume():
    found = trainer.checkpointer.restore(
        item, noop_if_missing=True, donate=False
    )
    assert _numbers(_trees.split_lora(found.train_state.params)[1]) == {1.0}
    trainer.checkpointer.close()

  for i in itertools.count(1):
    yield i, resume


def check_resumable(folder: pathlib.Path) -> None:
  """Reads the step that is there. All rounds are alike."""
  assert check_run(folder) == 1


def check_run(folder: pathlib.Path) -> int:
  """Reads each step that is there; returns the last."""
  with kd.ckpts.Checkpointer(
      workdir=folder / _FOLDER, save_interval_steps=1
  ) as checkpointer:
    steps = checkpointer.all_steps
  for step in steps:
    params, _ = _lora_item.read_lora(folder / _FOLDER, step=step, who='T')
    assert _numbers(params) == {float(step)}
  return max(steps, default=0)


def check_lora(folder: pathlib.Path) -> int:
  """Reads a folder of `save_lora`; returns its round."""
  leaves, _ = _lora_file.read(folder / _FOLDER, who='T')
  (number,) = _numbers(leaves)
  return int(number)


def check_peft(folder: pathlib.Path) -> int:
  """Reads a PEFT folder; returns its round."""
  lora = g4.hf.load_peft(folder / _FOLDER, model=_base())
  (number,) = _numbers(lora.params)
  return int(number)


def check_arrays(folder: pathlib.Path) -> None:
  """Reads a base, whose digests and sizes are checked. All rounds are alike."""
  source = _open.open_source(folder / _FOLDER, who='T')
  arrays = {
      x.key: ocp.RestoreArgs(restore_type=np.ndarray)
      for x in source.leaves.values()
  }
  assert len(source.read(arrays)) > 5


def _newest(folder: pathlib.Path, check: Callable[[pathlib.Path], int]) -> int:
  return check(folder) if (folder / _FOLDER).exists() else 0


def _numbers(leaves: Any) -> set[float]:
  return {float(x) for leaf in jax.tree.leaves(leaves) for x in np.ravel(leaf)}


def leftovers(folder: pathlib.Path) -> list[str]:
  """Returns names that no reader looks for."""
  return [
      os.fspath(x.relative_to(folder))
      for x in folder.rglob('*')
      if x.is_dir() and ('tmp' in x.name or x.name.startswith('.'))
  ]


# What writes, and what reads it, by name.
KINDS = {
    'steps': (_of_a_run, check_run),
    'resume': (_resumes, check_resumable),
    'export': (_save_peft, check_peft),
    'save_lora': (_save_lora, check_lora),
    'save_quantized': (_save_quantized, check_arrays),
    'fuse': (_exports('gemma'), check_arrays),
    'fuse to safetensors': (_exports('hf'), check_arrays),
}
