"""What servers answer with the folders that we write, against our own numbers.

```sh
python -m pytest tests/serving -s
```

It builds llama.cpp once, and runs it, transformers and PEFT in an environment of
their own. No other run of the tests collects it.
"""

import dataclasses
import json
import pathlib
import subprocess

from gemma import peft
import jax
import numpy as np
import pytest

from gemma4_lora import g4
from gemma4_lora.servers import _lint
from gemma4_lora.servers import _servers
from tests.lib import random_params
from tests.lib import trained
from tests.serving import llama_cpp

pytestmark = pytest.mark.slow

_SCRIPT = pathlib.Path(__file__).parent / 'server_side.py'
# Pieces of the real vocabulary: all tags, bytes, line breaks and spaces.
_PIECES = 512
_MORE = 12
_SIZES = ('E2B', 'E4B', '12B', '26B_A4B', '31B')


def _targets(size):
  """Several ranks and scales, on all that llama.cpp has LoRA for."""
  edge = size in ('E2B', 'E4B')
  exclude = {'exclude': 'per_layer_model_projection'} if edge else {}
  return (
      g4.targets.Rule('q', rank=2, alpha=5.0),
      g4.targets.Rule('down', rank=3, alpha=1.0),
      g4.targets.Rule('text', alpha=6.0, **exclude),
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """A LoRA, as a merged folder and as an adapter, and what we compute with it.

  Attributes:
    name: What it is called in the table.
    folder: A folder of transformers: the merged model, or the base.
    adapter: A PEFT folder, or None.
    logits: f32[L V].
    tokens: The prompt, and what we continue it with.
  """

  name: str
  folder: pathlib.Path
  adapter: pathlib.Path | None
  logits: np.ndarray
  tokens: np.ndarray


def _side(what, tmp_path, **job):
  """Runs the script, which sees the job's arguments."""
  path = tmp_path / f'{what}.json'
  path.write_text(json.dumps(job))
  _run(_SCRIPT, what, path)


def _run(*script):
  command = ['uv', 'run', '--no-project', *script]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope='session')
def files(tmp_path_factory):
  """A folder with the tokenizer."""
  folder = tmp_path_factory.mktemp('files')
  source = str(llama_cpp.source())
  _side('tokenizer', folder, source=source, out=str(folder), size=_PIECES)
  return folder


def _prompt():
  return np.random.default_rng(3).integers(240, _PIECES, 17)


def _ours(model, params, tokens):
  """Logits of the prompt, and the greedy continuation."""
  apply = jax.jit(lambda x: model.apply({'params': params}, x).logits)
  # One shape: what is behind a token changes nothing before it.
  padded = np.zeros((1, len(tokens) + _MORE), np.int32)
  padded[0, : len(tokens)] = tokens
  logits = None
  for length in range(len(tokens), padded.shape[1]):
    got = np.asarray(apply(padded))[0]
    if logits is None:
      logits = got[: len(tokens)]
    padded[0, length] = got[length - 1].argmax()
  return logits, padded[0]


def _model(size, *, text_only=True, **kwargs):
  base = getattr(g4.testing, f'Gemma4_{size}')(
      tokens='batch.input', dtype=np.float32, text_only=text_only
  )
  config = dataclasses.replace(base.config, num_embed=_PIECES)
  return g4.nn.LoRA(rank=4, model=base.clone(config=config), **kwargs)


class _Trained:
  """A model whose LoRA was trained, and what is written of it."""

  def __init__(self, path, files, size, **kwargs):
    self.path, self.files = path, files
    self.model = _model(size, **kwargs)
    base = path / 'base_of_orbax'
    # Large enough that no norm makes much of a rounding.
    params = random_params.make(self.model.model)
    if not self.model.model.text_only:
      towers = g4.testing.make_checkpoint(self.model.model, path / 'towers')
      params = peft.merge_params(towers, params)
    g4.testing.make_checkpoint(self.model.model, base, params=params)
    self.run = trained.Run(path, self.model, base=base)
    self.logits, self.tokens = _ours(self.model, self.run.params, _prompt())

  def merged(self):
    return self._written('merged', self.run.workdir)

  def base(self):
    return self._written('base', None)

  def adapter(self, server):
    path = self.path / server
    kwargs = {
        'model': self.model,
        'params': self.run.params,
        'base_model_class': 'Gemma4ForCausalLM',
    }
    if server == 'mlx':
      g4.hf.save_mlx(path, **kwargs)
    else:
      g4.hf.save_peft(path, **kwargs, server=server)
    return path

  def case(self, name, folder, adapter=None):
    return Case(
        name=name,
        folder=folder,
        adapter=adapter,
        logits=self.logits,
        tokens=self.tokens,
    )

  def _written(self, name, workdir):
    folder = self.path / name
    if not folder.exists():
      self.run.export(folder, format='hf', hf_files=self.files, workdir=workdir)
    return folder


def _job(case):
  return {
      'folder': str(case.folder),
      'adapter': case.adapter and str(case.adapter),
      'tokens': case.tokens[:-_MORE].tolist(),
      'more': _MORE,
  }


def _compare(cases, path, *, most):
  """Prints and checks differences, relative to the largest logit."""
  answers = np.load(path)
  wrong = []
  for i, case in enumerate(cases):
    assert f'{i}.error' not in answers, answers[f'{i}.error']
    got = answers[f'{i}.logits']
    off = np.abs(got - case.logits).max() / np.abs(case.logits).max()
    same = np.array_equal(answers[f'{i}.tokens'], case.tokens)
    line = f'| {path.stem} | {case.name} | {off:.1e} | {same} |'
    print(line)
    if off > most or not same:
      wrong.append(line)
  assert not wrong


@pytest.fixture(scope='session')
def cases(tmp_path_factory, files):
  """The merged model of each size, and the base with an adapter."""
  made = []
  for size in _SIZES:
    of_size = _Trained(
        tmp_path_factory.mktemp(size),
        files,
        size,
        use_rslora=size == '31B',
        targets=_targets(size),
    )
    made.append(of_size.case(f'{size}, merged', of_size.merged()))
    adapter = of_size.adapter('llama.cpp')
    made.append(of_size.case(f'{size}, adapter', of_size.base(), adapter))
  for size in ('E2B', '12B'):
    path = tmp_path_factory.mktemp(f'{size}_with_towers')
    of_size = _Trained(path, files, size, targets='text', text_only=False)
    made.append(of_size.case(f'{size} with towers, merged', of_size.merged()))
  return made


@pytest.mark.parametrize(
    'exact,name,most',
    [
        (True, 'llama.cpp', 1e-3),
        # Its table for GELU has 16 bits.
        (False, 'llama.cpp_as_released', 3e-2),
    ],
)
def test_llama_cpp(cases, exact, name, most, tmp_path):
  """Merged models and adapters, with GELU in float32 and as released."""
  out = tmp_path / f'{name}.npz'
  _by_llama(cases, out, exact=exact)
  _compare(cases, out, most=most)


def _by_llama(cases, out, *, exact):
  _side(
      'llama',
      out.parent,
      source=str(llama_cpp.source()),
      libraries=str(llama_cpp.libraries(exact=exact)),
      cases=[_job(case) for case in cases],
      out=str(out),
  )


def test_transformers_and_peft(cases, tmp_path):
  """The same folders: what is written for llama.cpp is still PEFT's."""
  out = tmp_path / 'transformers.npz'
  _side(
      'transformers',
      tmp_path,
      cases=[_job(case) for case in cases],
      out=str(out),
  )
  _compare(cases, out, most=1e-4)


# What `gemma4_lora check --for=llama.cpp` says of a folder, and a LoRA of which it
# is said.
_SAID = {
    'use_rslora': ('ignores', 'E2B', {'use_rslora': True}),
    'alpha_pattern': ('ignores', 'E2B', {'targets': _targets('E2B')}),
    'per_layer_model_projection': (
        'ignores',
        'E2B',
        {'targets': 'per_layer_model_projection'},
    ),
    'DoRA': ('refuses', 'E2B', {'use_dora': True}),
    'modules_to_save': ('refuses', 'E2B', {'modules_to_save': 'embedder'}),
    'routed experts': ('refuses', '26B_A4B', {'targets': 'experts'}),
}


def test_llama_cpp_does_what_is_said_of_it(files, tmp_path):
  """With PEFT's folders, which are not written for it."""
  cases = []
  for name, (kind, size, kwargs) in _SAID.items():
    path = tmp_path / name
    path.mkdir()
    of_size = _Trained(path, files, size, **{'targets': 'o'} | kwargs)
    folder = of_size.adapter('peft')
    found = _lint.of_folder(
        folder,
        _servers.SERVERS['llama.cpp'],
        model_config=of_size.model.config,
        who='test',
    )
    assert [x for x in found if x.kind == kind and name in x.text], found
    cases.append(of_size.case(name, of_size.base(), folder))
  out = tmp_path / 'said.npz'
  _by_llama(cases, out, exact=True)
  answers = np.load(out)
  for i, (name, (kind, _, _)) in enumerate(_SAID.items()):
    refused = f'{i}.error' in answers
    assert refused == (kind == 'refuses'), name
    if not refused:
      off = np.abs(answers[f'{i}.logits'] - cases[i].logits).max()
      assert off > 1e-2, name


def test_mlx(files, tmp_path):
  """Merged, and adapters of its own: several ranks and scales, experts, DoRA."""
  cases = []
  for name, size, kwargs in (
      ('E2B', 'E2B', {'targets': _targets('E2B')}),
      ('E2B, DoRA', 'E2B', {'targets': _targets('E2B'), 'use_dora': True}),
      ('26B_A4B, experts', '26B_A4B', {'targets': ['text', 'experts']}),
      ('31B', '31B', {'targets': _targets('31B'), 'use_rslora': True}),
      ('12B', '12B', {'targets': 'text'}),
  ):
    path = tmp_path / name
    path.mkdir()
    of_size = _Trained(path, files, size, **kwargs)
    cases.append(of_size.case(f'{name}, merged', of_size.merged()))
    adapter = of_size.adapter('mlx')
    cases.append(of_size.case(f'{name}, adapter', of_size.base(), adapter))
  out = tmp_path / 'mlx-lm.npz'
  job = tmp_path / 'job.json'
  jobs = [_job(case) for case in cases]
  job.write_text(json.dumps({'cases': jobs, 'out': str(out)}))
  _run(_SCRIPT.with_name('mlx_side.py'), job)
  _compare(cases, out, most=1e-3)
