"""Each public function and command with `gs://` paths: run by `in_buckets_test`.

One process of `tests.lib.buckets` makes all checks, as importing gemma takes 10 s,
and writes what each had to say to a file.
"""

import contextlib
import functools
import gzip
import io
import json
import os
import pathlib
import re
import sys
import threading
import time
import traceback
from unittest import mock

NAMES = (
    'save_lora',
    'save_peft',
    'save_quantized',
    'make_checkpoint',
    'transforms_from_a_run',
    'half_a_step',
    'fuse',
    'export',
    'servers',
    'quantize',
    'chat',
    'plans',
    'jsonl',
    'cut_anywhere',
    'dead_writers',
    'live_writers',
    'in_the_way',
    'errors',
    'cut_in_a_restore',
    'gone_in_a_restore',
    'no_local_folder',
)


class Checks:
  """The checks: methods called by their names, in the order of `NAMES`."""

  def __init__(self, buckets, folder):
    from gemma4_lora import g4
    from tests.lib import models
    from tests.lib import trained

    self._buckets, self._folder = buckets, folder
    for bucket in ('bases', 'runs', 'out'):
      buckets.make(bucket)
    import jax.numpy as jnp

    base = g4.testing.Gemma4_31B(tokens='batch.input', dtype=jnp.float32)
    model = g4.nn.LoRA(rank=2, targets='q', model=models.shallow(base))
    # Kauldron's checkpointer does not write to buckets.
    self._run = trained.Run(folder, model)
    buckets.upload(self._run.released, 'gs://bases/tiny')
    buckets.upload(self._run.workdir, 'gs://runs/run')
    self._model, self._params = model, self._run.params
    config = folder / 'config.py'
    config.write_text(_CONFIG)
    self._cfg = f'--cfg={config}', '--cfg.workdir=gs://runs/run'

  def save_lora(self):
    from gemma4_lora import g4

    path, kwargs = 'gs://out/a/lora', {'model': self._model}
    g4.ckpts.save_lora(path, params=self._params, **kwargs)
    got = g4.ckpts.load_lora(path, params=self._params, **kwargs)
    _equal(got, self._params)
    with _raises(FileExistsError, 'gs://out/a/lora exists. .* overwrite=True'):
      g4.ckpts.save_lora(path, params=self._params, **kwargs)
    other = _trained_more(self._params)
    g4.ckpts.save_lora(path, params=other, overwrite=True, **kwargs)
    _equal(g4.ckpts.load_lora(path, params=self._params, **kwargs), other)
    assert self._files('out', 'a') == [
        'lora/gemma4_lora_commit.json',
        'lora/lora.json',
        'lora/lora.safetensors',
    ]
    # One byte is another.
    file = self._buckets.folder('out') / 'a/lora/lora.safetensors'
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with _raises(ValueError, 'gs://out/a/lora/lora.safetensors.*checksum'):
      g4.ckpts.load_lora(path, params=self._params, **kwargs)

  def save_peft(self):
    import safetensors.numpy

    from gemma4_lora import g4

    path = 'gs://out/a/peft'
    for _ in range(2):
      g4.hf.save_peft(
          path, model=self._model, params=self._params, overwrite=True
      )
    got = g4.hf.load_peft(path, model=self._model.model)
    _equal(got.params, _lora(self._params))
    # Others read plain files.
    folder = self._buckets.folder('out') / 'a' / 'peft'
    tensors = safetensors.numpy.load_file(folder / 'adapter_model.safetensors')
    assert len(tensors) == 4
    config = json.loads((folder / 'adapter_config.json').read_text())
    assert config['peft_type'] == 'LORA'
    # Without our file it is a folder of theirs.
    (folder / 'gemma4_lora_commit.json').unlink()
    got = g4.hf.load_peft(path, model=self._model.model)
    report = g4.nn.check(self._model, self._params, file=path)
    assert report.ok, report
    got = g4.ckpts.load_lora(path, model=self._model, params=self._params)
    _equal(got, self._params)

  def save_quantized(self):
    from gemma4_lora import g4

    model = self._model.clone(quantize='int8')
    params = self._quantized(model, 'gs://bases/tiny')
    g4.ckpts.save_quantized('gs://out/a/int8', model=model, params=params)
    _equal(self._quantized(model, 'gs://out/a/int8'), params)

  def make_checkpoint(self):
    from gemma import gm

    from gemma4_lora import g4

    base = self._model.model
    for layout in ('nested', 'flat', 'kauldron', 'hf'):
      path = f'gs://out/made/{layout}'
      params = g4.testing.make_checkpoint(base, path, layout=layout)
      if layout == 'nested':
        got = gm.ckpts.load_params(path)  # Orbax says that it is whole.
        _equal(
            got['layer_1']['attn']['q_einsum']['w'],
            params['layer_1']['attn']['q_einsum']['w'],
        )
      _equal(self._restored(path), params)
      with _raises(FileExistsError, f'{path} exists'):
        g4.testing.make_checkpoint(base, path, layout=layout)
    made = g4.testing.RandomCheckpoint(model=base, folder='gs://out/made/kept')
    assert os.fspath(made) == os.fspath(made)
    assert self._restored(made)

  def transforms_from_a_run(self):
    from gemma4_lora import g4
    from tests.lib import states

    load = g4.ckpts.LoadLoRA(path='gs://runs/run', model=self._model)
    fresh = _trained_more(self._params)
    _equal(load.transform(states.wrap(fresh)).params, self._params)
    with _raises(ValueError, 'step=7 is not in gs://runs/run/checkpoints'):
      g4.ckpts.LoadLoRA(path='gs://runs/run', step=7).transform(
          states.wrap(fresh)
      )

  def half_a_step(self):
    """Without Orbax's mark, a step is none: also for who names it."""
    from gemma4_lora import g4

    step = self._run.workdir / 'checkpoints' / 'ckpt_3'
    for name in ('half/checkpoints/ckpt_3', *_SAVING):
      self._buckets.upload(step, f'gs://runs/{name}')
      if 'ckpt_3' not in name or 'half' in name:
        (self._buckets.folder('runs') / name / 'commit_success.txt').unlink()
    # Its deletion was killed later.
    self._buckets.upload(
        step / 'default/d', 'gs://runs/saving/checkpoints/ckpt_4/default/d'
    )
    load = functools.partial(
        g4.ckpts.load_lora, model=self._model, params=self._params
    )
    _equal(load('gs://runs/saving'), self._params)
    lacks = 'half-written: .*has no commit_success.txt, which .* whole copy'
    for path, kwargs in (
        ('gs://runs/saving', {'step': 9}),
        ('gs://runs/saving/checkpoints/ckpt_9', {}),
        ('gs://runs/saving/checkpoints/ckpt_9/default', {}),
    ):
      with _raises(ValueError, lacks):
        load(path, **kwargs)
    with _raises(
        ValueError, 'step=4 is half-written: .* has no default/_METAD'
    ):
      load('gs://runs/saving', step=4)
    with _raises(
        ValueError, r"half-written: \['ckpt_3'\]. If it is the whole co"
    ):
      load('gs://runs/half')
    cfg = self._cfg[0], '--cfg.workdir=gs://runs/half'
    to = '--out=gs://out/half'
    for args in (('chat',), ('fuse', to), ('export', to), ('check',)):
      out = self._command(*args, *cfg, code=1)
      assert 'half-written' in out and len(_lines(out)) == 1, out
    assert not self._files('out', 'half')

  def fuse(self):
    from gemma import gm

    from gemma4_lora import g4

    want = g4.nn.fuse_params(self._model, self._params)
    for _ in range(2):
      out = self._command('fuse', *self._cfg, '--out=gs://out/f', '--overwrite')
    assert 'gs://out/f: ' in out and 'LoRA in 2 of them' in out
    got = gm.ckpts.load_params('gs://out/f')
    _equal(
        got['layer_1']['attn']['q_einsum']['w'],
        want['layer_1']['attn']['q_einsum']['w'],
    )
    assert self._files('out', 'f')
    self._command('fuse', *self._cfg, '--out=gs://out/fhf', '--format=hf')
    assert 'model.safetensors' in self._files('out', 'fhf')

  def export(self):
    self._command('export', *self._cfg, '--out=gs://out/e')
    out = self._command('check', *self._cfg, '--peft=gs://out/e')
    assert 'OK: all 2 projections are there' in out
    self._command('check', self._cfg[0], '--peft=gs://out/e')

  def servers(self):
    """The forms of servers; files beside weights, from one bucket to another."""
    from gemma4_lora import g4

    self._command('export', *self._cfg, '--out=gs://out/vllm', '--for=vllm')
    args = '--peft=gs://out/vllm', '--for=vllm'
    assert 'serves it as trained' in self._command('check', *self._cfg, *args)
    self._command('export', *self._cfg, '--out=gs://out/mlx', '--for=mlx')
    mlx = self._folder / 'mlx'
    g4.hf.save_mlx(mlx, model=self._model, params=self._params)
    for name in ('adapter_config.json', 'adapters.safetensors'):
      want = (mlx / name).read_bytes()
      assert self._bytes(f'gs://out/mlx/{name}') == want, name
    with _raises(FileExistsError, 'gs://out/mlx exists'):
      g4.hf.save_mlx('gs://out/mlx', model=self._model, params=self._params)
    files = self._folder / 'files'
    files.mkdir()
    (files / 'tokenizer.json').write_text('{}')
    self._buckets.upload(files, 'gs://bases/files')
    self._command(
        *('fuse', *self._cfg, '--out=gs://out/hf', '--format=hf'),
        '--hf_files=gs://bases/files',
    )
    assert self._bytes('gs://out/hf/tokenizer.json') == b'{}'
    assert b'"num_hidden_layers"' in self._bytes('gs://out/hf/config.json')

  def _bytes(self, path):
    from etils import epath

    return epath.Path(path).read_bytes()

  def quantize(self):
    model = self._model.clone(quantize='int8')
    args = (*self._cfg, '--cfg.model.quantize=int8', '--out=gs://out/q')
    self._command('quantize', *args)
    want = self._quantized(model, 'gs://bases/tiny')
    _equal(self._quantized(model, 'gs://out/q'), want)

  def chat(self):
    # It reads all, and nobody says anything: to sample takes long to compile.
    for source in (
        (),
        ('--peft=gs://out/e',),
        ('--merged=gs://out/f',),
        ('--merged=gs://out/fhf',),
    ):
      with mock.patch.object(sys, 'stdin', io.StringIO()):
        self._command('chat', *self._cfg, *source)
    out = self._command('chat', *self._cfg, '--merged=gs://out/none', code=1)
    assert 'gs://out/none' in out and len(_lines(out)) == 1, out
    out = self._command('chat', *self._cfg, '--step=7', code=1)
    assert 'step=7 is not in gs://runs/run/checkpoints' in out, out

  def plans(self):
    from gemma4_lora.tpu import _cache

    folder = _cache.folder('gs://out/plans')
    assert _cache.load(folder, 'key') is None
    (folder / 'key.json').write_text('{')
    assert _cache.load(folder, 'key') is None  # Damaged: a line in the log.

  def jsonl(self):
    import pyarrow as pa
    from pyarrow import parquet

    from gemma4_lora import g4
    from gemma4_lora import host

    host.path('gs://out/x.jsonl').write_text('{"a": 1}\n\n{"a": 2}')
    host.path('gs://out/y.jsonl.gz').write_bytes(gzip.compress(b'{"a": 3}'))
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist([{'a': 4}]), table)
    host.path('gs://out/z.parquet').write_bytes(table.getvalue())
    path = ['gs://out/[xy].json*', 'gs://out/z.parquet']
    source = g4.data.Files(path=path, shuffle=False).data_source
    assert [source[i]['a'] for i in range(len(source))] == [1, 2, 3, 4]
    with _raises(FileNotFoundError, r'no file matches gs://out/n\*'):
      len(g4.data.Files(path='gs://out/n*', shuffle=False).data_source)
    self._template()

  def _template(self):
    from gemma4_lora import g4
    from gemma4_lora import host
    from tests.lib import chat_templates

    folder = host.path('gs://out/served')
    (folder / 'chat_template.jinja').write_text(chat_templates.DIALOG)
    tokenizer = g4.testing.Gemma4Tokenizer()
    row = {'prompt': 'Hi', 'response': 'Hi!'}
    texts = [
        g4.data.ChatTask(
            template=template, tokenizer=tokenizer, max_length=64
        ).render(row)
        for template in (str(folder), 'dialog')
    ]
    assert texts[0] == texts[1]
    with _raises(FileNotFoundError, "template='gs://out/none': there is no"):
      g4.data.ChatTask(
          template='gs://out/none', tokenizer=tokenizer, max_length=64
      )

  def cut_anywhere(self):
    """From some request on, all are refused: the folder is old or new."""
    old, new = {'a.json': b'old', 'data': b'1' * 9}, {
        'a.json': b'new',
        'b': b'',
    }
    seen = set()
    for first in (9, 20, 30, 200):
      path = f'gs://out/cut/{first}'
      self._save(path, old)
      self._buckets.fail(status=403, first=first)
      with contextlib.suppress(PermissionError):
        self._save(path, new, overwrite=True)
        assert first == 200, f'{first} requests are too few'
      self._buckets.heal()
      got = self._read(path, 'a.json')['a.json']
      want = old if got == b'old' else new
      assert self._read(path, *want) == want, first
      seen.add(got)
      self._save(path, new, overwrite=True)
      assert self._read(path, *new) == new
      left = self._files('out', 'cut')
      assert [x for x in left if x.startswith(f'{first}/')] == [
          f'{first}/{name}' for name in ('a.json', 'b', _COMMIT)
      ], left
      assert not [x for x in left if '.tmp' in x], left
    assert seen == {b'old', b'new'}

  def dead_writers(self):
    """What a dead process of this machine left is removed, in any state."""
    from absl import logging

    from gemma4_lora.host.folders import _owner

    dead = _owner.make() | {'pid': 2**22 + 1}
    path = self._put('gs://out/dead/x', {'a.json': b'half'}, dead, 'writing')
    with _raises(ValueError, 'x is an interrupted write: process 4194305 on'):
      self._read(path, 'a.json')
    self._save(path, {'b': b''})  # There was nothing to overwrite.
    assert self._files('out', 'dead/x') == ['b', _COMMIT]
    self._put('gs://out/dead/.y.0123abcd.tmp', {}, dead, 'writing')
    self._save('gs://out/dead/z', {'b': b''})
    assert self._files('out', 'dead') == [
        *(f'{name}/{file}' for name in 'xz' for file in ('b', _COMMIT))
    ]
    # Another machine's: watched if it wrote a moment ago.
    far = dead | {'machine': 'another'}
    path = self._put('gs://out/dead/far', {'a': b''}, far, 'writing')
    with mock.patch.object(_owner, '_SILENT_S', -1.0):
      self._save(path, {'b': b''})
    path = self._put('gs://out/dead/watched', {'a': b''}, far, 'writing')
    with (
        mock.patch.object(_owner, 'PATIENCE_S', 1.0),
        mock.patch.object(logging, 'warning') as said,
    ):
      self._save(path, {'b': b''})
    (said,) = said.call_args_list  # Once.
    assert 'written by process 4194305 on' in said.args[0] % said.args[1:]
    assert 'waiting up to 1 s' in said.args[0] % said.args[1:]
    assert self._files('out', 'dead/watched') == ['b', _COMMIT]

  def live_writers(self):
    from gemma4_lora import host
    from gemma4_lora.host import _processes
    from gemma4_lora.host.folders import _bucket_writers
    from gemma4_lora.host.folders import _commit
    from gemma4_lora.host.folders import _new_folder
    from gemma4_lora.host.folders import _owner

    live = _owner.make() | {
        'pid': os.getppid(),
        'start': _processes.started(os.getppid()),
    }
    path = self._put('gs://out/live/x', {'a': b'half'}, live, 'writing')
    self._put('gs://out/live/.y.0123abcd.tmp', {}, live, 'writing')
    with _raises(FileExistsError, 'x is being written by process'):
      self._save(path, {'b': b''}, overwrite=True)
    self._save('gs://out/live/z', {'b': b''})
    # Another machine's: its file changes while we watch.
    far = live | {'machine': 'another', 'token': 'other'}
    path = self._put('gs://out/live/far', {'a': b'half'}, far, 'writing')
    beats = _bucket_writers.Work(
        host.path(path), _commit.Commit(state='writing', writer=far), 'far'
    )
    with (
        mock.patch.object(_owner, '_BEAT_S', 0.5),
        beats.started(),
        _raises(FileExistsError, 'far is being written by process'),
    ):
      self._save(path, {'b': b''}, overwrite=True)
    # It seemed dead, and was not: it does not say that its folder is whole.
    where = _new_folder.check_free('gs://out/live/slow', **_NEW)
    with _raises(FileExistsError, 'slow is being written by process .*, too'):
      with _new_folder.new_folder(where, **_NEW) as folder:
        (folder / 'a').write_text('a')
        self._put('gs://out/live/slow', {'b': b''}, far, 'writing')
    assert self._files('out', 'live/slow') == ['a', 'b', _COMMIT]
    assert '.y.0123abcd.tmp/' + _COMMIT in self._files('out', 'live')

  def in_the_way(self):
    """A file, a run, or a name that is too long: no new folder, no waiting."""
    from gemma4_lora import g4
    from gemma4_lora import host
    from gemma4_lora.ckpts import _workdir
    from gemma4_lora.jobs import _train

    save = {'model': self._model, 'params': self._params, 'overwrite': True}
    host.path('gs://out/way/file').write_text('x')
    for path in ('gs://out/way/file', 'gs://out/way/file/a/b'):
      for call in (
          lambda p: g4.ckpts.save_lora(p, **save),
          lambda p: _train._check_workdir(host.path(p), trains=True),
          lambda p: _workdir.Workdir(path=host.path(p), can_clean=True).probe(
              who='Checkpointer'
          ),
      ):
        with _raises(FileExistsError, 'gs://out/way/file is a file'):
          call(path)
    # Where Orbax would read and write beside it.
    where = 'gs://out/way/a?b#c'
    g4.ckpts.save_lora(where, **save)
    base = self._model.model
    for call in (
        lambda: g4.testing.make_checkpoint(base, f'{where}/o'),
        lambda: _train._check_workdir(host.path(where), trains=True),
    ):
      with _raises(ValueError, f"{re.escape(where)}.* has a '#'"):
        call()
    params = g4.testing.make_checkpoint(base, f'{where}/hf', layout='hf')
    _equal(self._restored(f'{where}/hf'), params)
    self._buckets.upload(self._run.released, f'{where}/copied')
    with _raises(ValueError, f"PartialLoad: {re.escape(where)}/.* has a '#'"):
      self._restored(f'{where}/copied')
    long = 'gs://out/' + 'folder/' * 130
    with _raises(ValueError, '909 bytes below the bucket, .* at most 1024'):
      g4.ckpts.save_lora(long, **save)
    with _raises(ValueError, '--cfg.workdir: gs://out/folder.*shorter path'):
      _train._check_workdir(host.path(long), trains=True)
    for args, message in (
        (('fuse', '--out=gs://runs/run'), 'gs://runs/run is the workdir'),
        (('export', '--out=gs://runs/run/checkpoints/x'), 'among the checkpoi'),
        (('fuse', '--out=gs://runs/run/checkpoints'), 'among the checkpoints'),
    ):
      error = self._command(*args, '--overwrite', *self._cfg, code=1)
      assert message in error and 'other path' in error, error
      assert len(_lines(error)) == 1, error

  def errors(self):
    from gemma4_lora import g4
    from gemma4_lora import host
    from gemma4_lora.jobs import _train

    save = {'model': self._model, 'params': self._params}
    with _raises(FileNotFoundError, 'workdir.*no bucket gs://not-there'):
      # Before Kauldron: it would try for ever to make the folder.
      _train._check_workdir(host.path('gs://not-there/run'), trains=True)
    with _raises(FileNotFoundError, 'there is no bucket gs://not-there'):
      g4.ckpts.save_lora('gs://not-there/x', **save)
    with _raises(FileNotFoundError, 'no checkpoint at gs://not-there/x'):
      g4.ckpts.load_lora('gs://not-there/x', **save)
    for status, text in (
        (401, 'no credentials'),
        (403, 'your account may not'),
    ):
      self._buckets.fail(status=status)
      for call in (
          lambda: g4.ckpts.save_lora('gs://out/x', **save),
          lambda: g4.ckpts.load_lora('gs://out/a/lora', **save),
          lambda: g4.hf.save_peft('gs://out/x', **save),
          lambda: g4.hf.load_peft('gs://out/a/peft', model=self._model.model),
          lambda: self._restored('gs://bases/tiny'),
          lambda: g4.testing.make_checkpoint(self._model, 'gs://out/x'),
      ):
        with _raises(PermissionError, f'gs://.*: {text}'):
          call()
      for command in (
          ('fuse', '--out=gs://out/x'),
          ('export', '--out=gs://out/x'),
          ('check', '--peft=gs://out/e'),
      ):
        error = self._command(*command, *self._cfg, code=1)
        assert text in error, error
        assert len(_lines(error)) == 1, error
      self._buckets.heal()
    # Only the data, in the middle of a restore.
    self._buckets.fail('bases.*d%2F', status=403)
    with _raises(PermissionError, 'gs://bases/tiny.*your account may not read'):
      self._restored('gs://bases/tiny')
    error = self._command('fuse', '--out=gs://out/x', *self._cfg, code=1)
    assert 'may not read' in error, error
    assert len(_lines(error)) == 1, error
    self._buckets.heal()
    assert not self._files('out', 'x')

  def cut_in_a_restore(self):
    """What is cut some times is read again, and the values are the same."""
    for path in _BASES:
      want = self._restored(path)
      self._buckets.fail(_DATA, after_bytes=1000, first=2, times=4)
      _equal(self._restored(path), want)
      self._buckets.heal()

  def gone_in_a_restore(self):
    """In bounded time, one line that says where and what to do."""
    from gemma4_lora import host
    from gemma4_lora.ckpts.sources import _bounded
    from gemma4_lora.host.ranges import _ranges

    never = threading.Event()
    with (
        mock.patch.dict(os.environ, {'GEMMA4_LORA_BUCKET_TIMEOUT': '3'}),
        mock.patch.object(_ranges, '_HEAD_BYTES', 100),
    ):
      for path in _BASES:
        self._buckets.fail(_DATA, after_bytes=1000, first=2)
        start = time.monotonic()
        with _raises(ConnectionError, f'{path}: .*broke: .* Try again'):
          self._restored(path)
        assert time.monotonic() - start < 60
        self._buckets.heal()
        # It takes what is sent, and says nothing.
        self._buckets.fail(_DATA, first=2, delay_s=20)
        with _raises(ConnectionError, f'{path}: .*: no answer for [36] s'):
          self._restored(path)
        self._buckets.heal()
      # Orbax may read for longer, as long as the bucket answers.
      base = host.path('gs://bases/tiny')
      self._buckets.fail(status=503)
      with _raises(ValueError, 'UNAVAILABLE|503'):
        _bounded.call(never.wait, directory=base)
      self._buckets.heal()
      threading.Timer(7, never.set).start()
      assert _bounded.call(never.wait, directory=base)
    for path in _BASES:
      self._restored(path)

  def no_local_folder(self):
    assert not [*pathlib.Path.cwd().iterdir()]

  # ------------------------------- Helpers ---------------------------------

  def _files(self, bucket, folder):
    root = self._buckets.folder(bucket) / folder
    return sorted(
        x.relative_to(root).as_posix() for x in root.rglob('*') if x.is_file()
    )

  def _put(self, path, files, writer, state):
    from gemma4_lora import host
    from gemma4_lora.host.folders import _commit

    folder = host.path(path)
    for name, data in files.items():
      (folder / name).write_bytes(data)
    _commit.write(folder, _commit.Commit(state=state, writer=writer))
    return path

  def _save(self, path, files, *, overwrite=False):
    from gemma4_lora.host.folders import _new_folder

    where = _new_folder.check_free(path, overwrite=overwrite, who='save')
    with _new_folder.new_folder(where, overwrite=overwrite, who='s') as folder:
      for name, data in files.items():
        (folder / name).write_bytes(data)

  def _read(self, path, *names):
    from gemma4_lora import host
    from gemma4_lora.host.folders import _commit

    return _commit.read_files(host.path(path), names, who='read')

  def _restored(self, path):
    from gemma4_lora import g4
    from gemma4_lora.gemma4 import _upstream
    from tests.lib import states

    shapes = _upstream.abstract_params(self._model.model)
    load = g4.ckpts.PartialLoad(path=path)
    return load.transform(states.wrap(shapes)).params

  def _quantized(self, model, path):
    from gemma4_lora import g4
    from gemma4_lora.runs import _model_base
    from tests.lib import states

    load = g4.ckpts.PartialLoad(path=path)
    return load.transform(states.wrap(_model_base.abstract(model))).params

  def _command(self, *args, code=0):
    """Runs a command in this process; returns what it printed."""
    from gemma4_lora import __main__ as main

    out, got = io.StringIO(), 0
    try:
      with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        main.main(args)
    except SystemExit as e:
      got = int(e.code or 0)
    finally:
      sys.modules.pop('cfg_config', None)
    assert got == code, out.getvalue()
    return out.getvalue()


_COMMIT = 'gemma4_lora_commit.json'
_NEW = {'overwrite': True, 'who': 'save'}
_SAVING = 'saving/checkpoints/ckpt_3', 'saving/checkpoints/ckpt_9'
_BASES = ('gs://bases/tiny', 'gs://out/made/hf')
# Requests of tensorstore for their data.
_DATA = r'/o/.*(tiny%2F.*d%2F|model.safetensors).*alt=media'

_CONFIG = """
from kauldron import konfig

with konfig.imports():
  from gemma import gm
  from jax import numpy as jnp
  from kauldron import kd
  from gemma4_lora import g4
  from tests.lib import models


def get_config():
  return kd.train.Trainer(
      train_ds=kd.data.py.DataSource(
          data_source="not at hand here",
          transforms=[
              g4.data.ChatTask(
                  tokenizer=g4.testing.Gemma4Tokenizer(), max_length=32
              ),
          ],
      ),
      model=g4.nn.LoRA(
          rank=2,
          targets="q",
          quantize=None,
          model=models.shallow(
              g4.testing.Gemma4_31B(tokens="batch.input", dtype=jnp.float32)
          ),
      ),
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path="gs://bases/tiny"),
      ),
  )
"""


@contextlib.contextmanager
def _raises(kind, match):
  """As `pytest.raises`, for one line."""
  import pytest

  with pytest.raises(kind, match=match) as e:
    yield
  assert '\n' not in str(e.value), e.value


def _lines(output: str) -> list[str]:
  """What a command printed, without the lines that say what it does."""
  return [x for x in output.strip().splitlines() if not x.endswith(' …')]


def _lora(params):
  from gemma4_lora import _trees

  return _trees.split_lora(params)[1]


def _trained_more(params):
  from gemma import peft
  import jax

  from gemma4_lora import _trees

  base, lora = _trees.split_lora(params)
  return peft.merge_params(base, jax.tree.map(lambda x: x + 1, lora))


def _equal(got, want):
  import jax
  import numpy as np

  jax.tree.map(
      lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b)),
      got,
      want,
  )


def run(buckets, results: pathlib.Path, *chosen: str) -> None:
  """Makes all checks, or some; to be called in the namespaces.

  Args:
    buckets: The emulated buckets.
    results: File to write: by check, what it had to say; nothing if all is well.
    *chosen: Names of checks.
  """
  here = results.parent / 'here'
  here.mkdir()
  os.chdir(here)
  checks = Checks(buckets, results.parent)
  said = {}
  for name in chosen or NAMES:
    try:
      getattr(checks, name)()
      said[name] = ''
    except BaseException:  # pylint: disable=broad-except
      said[name] = traceback.format_exc()
      buckets.heal()
    results.write_text(json.dumps(said))
