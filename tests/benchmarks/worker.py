"""One implementation in a process of its own, which answers questions.

Questions are lines of JSON on its input, answers lines of JSON after a marker,
for libraries print, too. So several can wait while one computes: what is
compared is measured in turns, under one load of the machine.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

MARK = '@@answer '
_ROOT = pathlib.Path(__file__).parents[2]


class Worker:
  """A process, seen from outside."""

  def __init__(self, command: list[Any], **environment: str):
    self._command = [str(x) for x in command]
    self._log = tempfile.TemporaryFile('w+')
    self._process = subprocess.Popen(
        self._command,
        cwd=_ROOT,
        env=environment or None,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._log,
        text=True,
    )

  def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
    """Returns the answer.

    Args:
      what: A function of the other side.
      **arguments: Of that.

    Raises:
      RuntimeError: The process ended.
    """
    assert self._process.stdin and self._process.stdout
    try:
      print(json.dumps([what, arguments]), file=self._process.stdin, flush=True)
    except BrokenPipeError:
      pass  # What it said comes below.
    for line in self._process.stdout:
      if line.startswith(MARK):
        return json.loads(line.removeprefix(MARK))
    self._process.wait()
    self._log.seek(0)
    raise RuntimeError(
        f'{" ".join(self._command)} ended at {what!r}:\n'
        f'{self._log.read()[-4000:]}'
    )

  def close(self) -> None:
    if self._process.poll() is None:
      self._process.communicate()
    self._log.close()


def answer(functions: Any) -> None:
  """Answers until there are no more questions."""
  for line in sys.stdin:
    what, arguments = json.loads(line)
    got = getattr(functions, what)(**arguments)
    print(MARK + json.dumps(got), flush=True)


def memory_mb() -> dict[str, float]:
  """Resident memory of this process, now and at its peak."""
  fields = dict(
      line.split(':', 1)
      for line in pathlib.Path('/proc/self/status').read_text().splitlines()
  )
  return {
      name: int(fields[key].split()[0]) * 1024 / 1e6
      for name, key in (('now', 'VmRSS'), ('peak', 'VmHWM'))
  }


def forget_peak() -> None:
  pathlib.Path('/proc/self/clear_refs').write_text('5')


class Functions:
  """What a worker of JAX can be asked."""

  def __init__(self, name: str, size: str):
    from tests.benchmarks import sizes

    self._name = name
    self._size = sizes.from_json(size)

  def compile(self, **settings: Any) -> dict[str, float]:
    """Traces and compiles the step, for shapes alone."""
    from tests.benchmarks import steps

    step = steps.make(self._name, self._size, **settings)
    start, cpu = time.monotonic(), time.process_time()
    lowered = step.lowered()
    traced = time.monotonic()
    self._compiled = lowered.compile()
    end = time.monotonic()
    cpu = time.process_time() - cpu
    self._step = step
    memory = self._compiled.memory_analysis()
    cost = self._compiled.cost_analysis()
    return {
        'trace_s': traced - start,
        'compile_s': end - traced,
        'cpu_s': cpu,
        'flops': cost['flops'],
        'bytes': cost['bytes accessed'],
        'arguments_mb': memory.argument_size_in_bytes / 1e6,
        'temporaries_mb': memory.temp_size_in_bytes / 1e6,
    }

  def begin(self) -> dict[str, Any]:
    """Makes arrays, and takes the first step."""
    import jax

    from tests.benchmarks import steps

    state, *self._frozen = self._step.split(steps.fill(self._step.params))
    self._state = jax.block_until_ready(state)
    self._batch = steps.batches(self._size)
    before = memory_mb()['now']
    forget_peak()
    loss = self.run(1)['loss']
    return {'loss': loss, 'temporaries_mb': memory_mb()['peak'] - before}

  def run(self, num: int) -> dict[str, float]:
    """Takes steps."""
    import jax

    start = time.monotonic()
    for _ in range(num):
      self._state, aux = self._compiled(self._state, *self._frozen, self._batch)
    jax.block_until_ready((self._state, aux))
    return {'seconds': time.monotonic() - start, 'loss': self._step.loss(aux)}

  def device(self) -> dict[str, Any]:
    """What runs it, and the most memory of it that was in use, in bytes."""
    import jax

    (device,) = jax.devices()[:1]
    stats: Any = device.memory_stats() or {}
    return {
        'kind': device.device_kind,
        'platform': device.platform,
        'peak': stats.get('peak_bytes_in_use'),
    }

  def write(self, folder: str) -> dict[str, Any]:
    """Writes a checkpoint of the base in the released layout."""
    from gemma4_lora import g4

    g4.testing.make_checkpoint(self._size.model(), folder)
    return {}

  def start(self, released: str, workdir: str) -> dict[str, float]:
    """Restores, and saves."""
    import jax

    from tests.benchmarks import steps

    if self._name == 'by_hand':
      return _by_orbax(released)
    trainer = steps.trainer(
        self._name, self._size, released=released, workdir=workdir
    )
    before = memory_mb()['now']
    forget_peak()
    start = time.monotonic()
    state = jax.block_until_ready(trainer.init_state())
    restored = time.monotonic()
    peak = memory_mb()['peak'] - before
    state = jax.block_until_ready(steps.trained(state))
    saving = time.monotonic()
    trainer.checkpointer.save(state, step=1, force=True)
    trainer.checkpointer.close()
    saved = time.monotonic()
    return {
        'restore_s': restored - start,
        'restore_peak_mb': peak,
        'save_s': saved - saving,
        'checkpoint_mb': size_mb(workdir),
    }

  def data(self, num: int) -> dict[str, float]:
    """Reads batches of chats."""
    from tests.benchmarks import pipelines

    if not hasattr(self, '_examples'):
      self._examples = pipelines.make(self._name)
      next(self._examples)
    start = time.monotonic()
    total = sum(len(next(self._examples)['input']) for _ in range(num))
    return {'examples_per_s': total / (time.monotonic() - start)}


def _by_orbax(released: str) -> dict[str, float]:
  """Reads all leaves to the host."""
  import jax
  import numpy as np
  import orbax.checkpoint as ocp

  path = pathlib.Path(released)
  before = memory_mb()['now']
  forget_peak()
  start = time.monotonic()
  handler = ocp.PyTreeCheckpointHandler(restore_concurrent_gb=2**20)
  tree = handler.metadata(path).tree
  args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
  handler.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))
  return {
      'restore_s': time.monotonic() - start,
      'restore_peak_mb': memory_mb()['peak'] - before,
  }


def size_mb(folder: Any) -> float:
  """Of all files under a folder."""
  files = [x for x in pathlib.Path(folder).rglob('*') if x.is_file()]
  return sum(x.stat().st_size for x in files) / 1e6


if __name__ == '__main__':
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('name')
  parser.add_argument('size')
  args = parser.parse_args()
  answer(Functions(args.name, args.size))
