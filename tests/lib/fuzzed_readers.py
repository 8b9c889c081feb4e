"""Readers of files that others wrote, and what one case of damage does to them.

A verdict is `same` (the same bits), `refused` (an error that users can read,
with the path), `other` (other names, shapes or dtypes, which the restore compares
with the model's), or a fault: `silent` (other numbers), `bare` (any other
exception, or one without the path), `hang`.
"""

from collections.abc import Callable
from collections.abc import Mapping
import dataclasses
import functools
import json
import math
import pathlib
import random
import shutil
import signal
import traceback
from typing import Any
import zlib

from etils import epath
import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
import safetensors.numpy

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.ckpts.lora import _bundles
from gemma4_lora.ckpts.lora import _fingerprint
from gemma4_lora.ckpts.lora import _lora_sources
from gemma4_lora.ckpts.sources import _open
from gemma4_lora.host.folders import _commit
from gemma4_lora.host.folders import _owner
from gemma4_lora.peft import _read_folder
from gemma4_lora.quant import _arrays
from tests.lib import hf_reference
from tests.lib import models
from tests.lib import mutated_files
from tests.lib import random_params

FAULTS = ('silent', 'bare', 'hang')
# Of time, as a read may wait without end; other work may have the processors.
_LIMIT_S = 100

Values = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reader:
  """A kind of file, and what reads it.

  Attributes:
    make: Writes a folder.
    read: Reads the folder; arrays by name.
    has_sums: Whether all numbers carry a checksum. Without it, a header may name
      other bytes, and those that the library reads are right.
  """

  make: Callable[[pathlib.Path], Any]
  read: Callable[[pathlib.Path], Values]
  has_sums: bool = True


# ------------------------------- Safetensors ------------------------------


def _make_weights(folder: pathlib.Path) -> None:
  shutil.copytree(hf_reference.TESTDATA / 'dense', folder)


def _make_shards(folder: pathlib.Path) -> None:
  folder.mkdir()
  tensors = sorted(hf_reference.tensors('dense').items())
  names = [f'model-0000{i}-of-00002.safetensors' for i in (1, 2)]
  index = {}
  for i, name in enumerate(names):
    part = dict(tensors[i::2])
    safetensors.numpy.save_file(part, folder / name)
    index |= dict.fromkeys(part, name)
  _write_json(folder / 'model.safetensors.index.json', {'weight_map': index})


def _write_json(file: pathlib.Path, value: Any) -> None:
  file.write_text(json.dumps(value))


def _read_source(folder: pathlib.Path) -> Values:
  """Reads all of a base, as a restore does."""
  source = _open.open_source(folder, who='T')
  keys = {x.key for x in source.leaves.values()}
  source.check(keys, who='T')
  args = {k: ocp.RestoreArgs(restore_type=np.ndarray) for k in keys}
  return {_trees.join(k): np.asarray(x) for k, x in source.read(args).items()}


def _written_again(folder: pathlib.Path) -> pathlib.Path:
  """Returns the folder with what the library reads in its safetensors.

  Raises:
    SafetensorError: The library refuses a file.
  """
  again = folder.with_name('again')
  shutil.rmtree(again, ignore_errors=True)
  shutil.copytree(folder, again)
  for file in again.glob('*.safetensors'):
    with safetensors.safe_open(file, 'numpy') as f:
      metadata = f.metadata()
    tensors = {
        k: np.array(x) for k, x in safetensors.numpy.load_file(file).items()
    }
    safetensors.numpy.save_file(tensors, file, metadata)
  return again


# ---------------------------------- LoRA ----------------------------------


def _make_peft(folder: pathlib.Path) -> None:
  shutil.copytree(hf_reference.TESTDATA / 'ad_e_full', folder)


def _make_committed(folder: pathlib.Path) -> None:
  """As one that was copied from a bucket."""
  _make_peft(folder)
  data = {x.name: x.read_bytes() for x in folder.iterdir()}
  files = {k: (len(x), zlib.crc32(x)) for k, x in data.items()}
  writer = _owner.make()
  commit = _commit.Commit(state='complete', writer=writer, files=files)
  _commit.write(epath.Path(folder), commit)


def _read_peft(folder: pathlib.Path) -> Values:
  config = _config('ad_e_full')
  found = _read_folder.read(folder, model_config=config, who='T')
  assert all(math.isfinite(x) and x for x in found.scales.values())
  return found.leaves


@functools.cache
def _config(adapter: str) -> Any:
  return hf_reference.load(hf_reference.ADAPTERS[adapter]).model.config


def _make_own(folder: pathlib.Path) -> None:
  model = models.lora(rank=2, targets=['q', 'down'])
  g4.ckpts.save_lora(folder, model=model, params=random_params.make(model))


def _read_own(folder: pathlib.Path) -> Values:
  found = _lora_sources.read(folder, step=-1, model=None, who='T')
  scales = {f'{k} scale': np.float64(x) for k, x in found.scales.items()}
  return {**found.leaves, **scales}


def _make_unsealed(folder: pathlib.Path) -> None:
  """As earlier versions wrote it."""
  _make_own(folder)
  said = json.loads((folder / 'lora.json').read_text())
  del said['seal'], said['digests']
  _write_json(folder / 'lora.json', said)


def _read_unsealed(folder: pathlib.Path) -> Values:
  return _lora_sources.read(folder, step=-1, model=None, who='T').leaves


def _make_unsealed_run(folder: pathlib.Path) -> None:
  _make_run(folder)
  (file,) = folder.glob('checkpoints/*/fingerprint/metadata')
  said = json.loads(file.read_text())
  del said['seal'], said['digests']
  _write_json(file, said)


def _make_run(folder: pathlib.Path) -> None:
  """A workdir with one step, less what only training writes."""
  model = models.lora(rank=2, targets=['q', 'down'])
  params = random_params.make(model)
  leaves = {
      ('params', *path): x
      for path, x in _trees.flatten(params).items()
      if _trees.is_lora(path)
  }
  arrays, index = _bundles.bundle(leaves)
  step = folder / 'checkpoints' / 'ckpt_1'
  step.mkdir(parents=True)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as ckpt:
    ckpt.save(epath.Path(step / 'default'), args=ocp.args.PyTreeSave(arrays))
  (step / 'fingerprint').mkdir()
  said = {
      **_fingerprint.describe(model, params),
      'index': index,
      'digests': _bundles.digests(arrays, index)(),
  }
  file = step / 'fingerprint' / 'metadata'
  _write_json(file, _fingerprint.to_write(said))


# ---------------------------------- Orbax ---------------------------------


def _make_orbax(
    folder: pathlib.Path, *, quantized: bool = False, **kwargs
) -> None:
  tree: Any = {
      'layer_0': {'mlp': {'linear': {'w': np.arange(12.0, dtype=np.float32)}}},
      'final_norm': {'scale': np.ones(5, np.float32)},
      'step': np.int32(3),
  }
  tree['layer_0']['mlp']['linear']['w'].shape = (3, 4)
  if quantized:
    encoding = g4.quant.NF4(group_size=2).encoding((4, 3), (0,), name='w')
    value = g4.quant.quantize(np.ones((4, 3)), encoding)
    tree['layer_0']['w'] = _arrays.stored(value)
  with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(**kwargs)) as ckpt:
    args = ocp.args.PyTreeSave(jax.tree.map(jax.numpy.asarray, tree))
    ckpt.save(epath.Path(folder), args=args)
  if quantized:
    _write_json(folder / 'quantized.json', {'layer_0.w': 'nf4'})


_orbax = functools.partial(Reader, read=_read_source)

READERS = {
    'weights': Reader(make=_make_weights, read=_read_source, has_sums=False),
    'shards': Reader(make=_make_shards, read=_read_source, has_sums=False),
    'peft': Reader(make=_make_peft, read=_read_peft, has_sums=False),
    'committed': Reader(make=_make_committed, read=_read_peft, has_sums=False),
    'own': Reader(make=_make_own, read=_read_own),
    'unsealed': Reader(
        make=_make_unsealed, read=_read_unsealed, has_sums=False
    ),
    'run': Reader(make=_make_run, read=_read_own),
    'unsealed_run': Reader(
        make=_make_unsealed_run, read=_read_unsealed, has_sums=False
    ),
    'orbax': _orbax(make=_make_orbax),
    'quantized': _orbax(make=functools.partial(_make_orbax, quantized=True)),
    'zarr': _orbax(make=functools.partial(_make_orbax, use_ocdbt=False)),
    'zarr3': _orbax(
        make=functools.partial(_make_orbax, use_ocdbt=False, use_zarr3=True)
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """What a case came to.

  Attributes:
    kind: See above.
    case: Reader, file and kind of damage.
    text: The error.
  """

  kind: str
  case: str
  text: str = ''


class Cases:
  """Cases by number: the same number is the same case."""

  def __init__(self, work: pathlib.Path, *, seed: int = 0):
    self._work = work
    self._seed = seed
    self._values: dict[str, Values] = {}

  def run(self, number: int) -> Verdict:
    """Runs a case."""
    rng = random.Random(f'{self._seed}-{number}')
    name = list(READERS)[number % len(READERS)]
    reader = READERS[name]
    good, want = self._good(name)
    bad = self._work / 'bad'
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(good, bad)
    files = [x for x in sorted(bad.rglob('*')) if _is_fuzzed(x)]
    file = rng.choice(files)
    is_header = not reader.has_sums and file.suffix == '.safetensors'
    part = 'header' if is_header else 'all'
    how = mutated_files.mutate(file, rng, part=part)
    case = f'{number} {name} {file.relative_to(bad)} {how}'
    kind, text = self._verdict(reader, bad, want)
    return Verdict(kind=kind, case=case, text=text)

  def _good(self, name: str) -> tuple[pathlib.Path, Values]:
    folder = self._work / name
    if name not in self._values:
      READERS[name].make(folder)
      self._values[name] = READERS[name].read(folder)
    return folder, self._values[name]

  def _verdict(
      self, reader: Reader, bad: pathlib.Path, want: Values
  ) -> tuple[str, str]:
    old = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(_LIMIT_S)
    try:
      got = reader.read(bad)
    except (ValueError, OSError) as e:
      is_ours = type(e) is ValueError or isinstance(e, OSError)
      said = str(e)
      said.encode()  # Can be printed.
      if is_ours and str(bad) in said:
        return 'refused', said
      return 'bare', traceback.format_exc()
    except _TooLong:
      return 'hang', traceback.format_exc()
    except BaseException:
      return 'bare', traceback.format_exc()
    finally:
      signal.alarm(0)
      signal.signal(signal.SIGALRM, old)
    return self._compared(reader, bad, got, want)

  def _compared(
      self, reader: Reader, bad: pathlib.Path, got: Values, want: Values
  ) -> tuple[str, str]:
    specs = [{k: (x.dtype, x.shape) for k, x in y.items()} for y in (got, want)]
    differ = [
        k
        for k in specs[0]
        if specs[0][k] == specs[1].get(k)
        and got[k].tobytes() != want[k].tobytes()
    ]
    if differ:
      if not reader.has_sums:
        try:
          again = reader.read(_written_again(bad))
        except safetensors.SafetensorError as e:
          return 'silent', f'the library refuses it: {e}'
        if all(got[k].tobytes() == again[k].tobytes() for k in got):
          return 'other', ''
      return 'silent', f'other numbers: {differ[:4]}'
    return ('same' if specs[0] == specs[1] else 'other'), ''


def _is_fuzzed(file: pathlib.Path) -> bool:
  """Whether a file is read, and no data without a checksum."""
  is_chunk = file.name.replace('.', '').isdigit() or file.name == 'c'
  in_process = any(x.startswith('ocdbt.process') for x in file.parts)
  is_note = file.name in ('README.md', 'README', 'config.json')
  return file.is_file() and not (is_chunk or in_process or is_note)


class _TooLong(BaseException):
  """The time of a case is over."""


def _too_long(*_: Any) -> None:
  raise _TooLong
