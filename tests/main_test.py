"""The commands of `python -m gemma4_lora`, in this process.

As a shell runs them: `jobs/train_test.py`.
"""

import io
import json
import os
import pathlib
import re
import subprocess
import sys

from gemma import gm
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gemma4_lora import _trees
from gemma4_lora import g4
from gemma4_lora.commands import _commands
from gemma4_lora.commands import _look_commands
from gemma4_lora.doctor import _command
from gemma4_lora.jobs import _yaml as jobs_yaml
from tests.lib import models
from tests.lib import random_params
from tests.lib import sampling
from tests.lib import states
from tests.lib import trained

_ROOT = pathlib.Path(__file__).parent.parent
_CONFIG = f'--cfg={_ROOT}/configs/gemma4_e2b_lora_mtnt.py'
_JOB = ('--region=us-east5', '--workdir=gs://b/run', '--dry-run', '--noplan')


def test_summary_of_a_config_with_an_override(run_command):
  done = run_command('summary', _CONFIG, '--cfg.model.rank=8')
  assert done.returncode == 0, done.stderr
  assert '13,166,592 trainable' in done.stdout  # Half of rank 16.


_RUN_CONFIG = """
from kauldron import konfig

with konfig.imports():
  from gemma import gm
  from jax import numpy as jnp
  from kauldron import kd
  from gemma4_lora import g4
  from tests.lib import models


def get_config():
  model = g4.nn.LoRA(
      rank=2,
      targets=["q", "down"],
      quantize=None,
      model=models.base(cut=models.one_layer, dtype=jnp.float32),
  )
  return kd.train.Trainer(
      train_ds=kd.data.py.DataSource(
          data_source="not at hand here",
          transforms=[
              g4.data.ChatTask(
                  thinking="empty",
                  tokenizer=g4.testing.Gemma4Tokenizer(),
                  max_length=32,
              ),
          ],
      ),
      model=model,
      init_transform=g4.ckpts.SkipLoRA4(
          wrapped=gm.ckpts.LoadCheckpoint(path="{path}"),
      ),
  )
"""


@pytest.fixture(scope='module', name='run')
def _trained(tmp_path_factory):
  """A run, and the config of it."""
  path = tmp_path_factory.mktemp('run')
  # In float32: the random LoRA is larger than the base, and what bfloat16
  # rounds of their sum is larger than `check` allows.
  base = models.base(cut=models.one_layer, dtype=jnp.float32)
  model = g4.nn.LoRA(rank=2, targets=['q', 'down'], model=base)
  run = trained.Run(path, model)
  config = path / 'config.py'
  config.write_text(_RUN_CONFIG.replace('{path}', os.fspath(run.released)))
  return run, (f'--cfg={config}', f'--cfg.workdir={run.workdir}')


def test_fuse_a_run(run, tmp_path, run_command):
  """gemma opens what is written, and says what the run says."""
  run, cfg = run
  out = tmp_path / 'out'
  out.mkdir()
  done = run_command('fuse', *cfg, f'--out={out}', '--overwrite', '--step=3')
  assert done.returncode == 0, done.stderr
  assert 'LoRA in 2 of them' in done.stdout
  got = gm.ckpts.load_params(out)
  want = g4.nn.fuse_params(run.model, run.params)
  np.testing.assert_array_equal(
      np.asarray(got['layer_0']['attn']['q_einsum']['w']),
      np.asarray(want['layer_0']['attn']['q_einsum']['w']),
  )
  said = sampling.chat(run.model, run.params)
  assert sampling.chat(run.model.model, got) == said
  base = gm.ckpts.load_params(run.released)
  assert sampling.chat(run.model.model, base) != said


def test_quantize_a_base(run, run_command, tmp_path):
  run, cfg = run
  done = run_command('quantize', *cfg, f'--out={tmp_path / "out"}')
  assert done.returncode == 1
  assert 'gemma4_lora quantize: model= quantises nothing' in done.stderr
  quantize = '--cfg.model.quantize=int8'
  done = run_command('quantize', *cfg, quantize, f'--out={tmp_path / "out"}')
  assert done.returncode == 0, done.stderr
  assert 'quantize=g4.quant.Int8()' in done.stdout
  model = run.model.clone(quantize='int8')
  shapes, _ = _trees.split_lora(random_params.shapes(model))
  load = g4.ckpts.PartialLoad(path=tmp_path / 'out')
  params = load.transform(states.wrap(shapes)).params
  released = gm.ckpts.load_params(run.released)
  want = released['layer_0']['mlp']['linear']['w']
  got = g4.quant.dequantize(params['layer_0']['mlp']['linear'], jnp.float32)
  assert np.abs(np.asarray(got) - want).max() < np.abs(want).max() / 250


def test_what_does_not_fit_is_a_line_and_no_traceback(
    run, tmp_path, run_command
):
  _, cfg = run
  out = tmp_path / 'out'
  out.mkdir()
  for args, message in (
      ((), f'gemma4_lora fuse: {out} exists. Give another path'),
      (('--overwrite', '--cfg.model.rank=3'), 'rank= of '),
      (('--overwrite', '--step=7'), 'Available steps: [3]'),
      (('--overwrite', '--cfg.model.rank=0'), 'rank'),
  ):
    done = run_command('fuse', *cfg, f'--out={out}', *args)
    assert done.returncode == 1
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


def test_export_a_run_as_peft(run, tmp_path, run_command):
  run, cfg = run
  done = run_command('export', *cfg, f'--out={tmp_path / "lora"}')
  assert done.returncode == 0, done.stderr
  # And it is what it should be.
  checked = run_command('check', *cfg, f'--peft={tmp_path / "lora"}')
  assert checked.returncode == 0, checked.stdout + checked.stderr
  assert 'OK: all 2 projections are there' in checked.stdout
  lora = g4.hf.load_peft(tmp_path / 'lora', model=run.model.model)
  jax.tree.map(
      np.testing.assert_array_equal,
      lora.params['layer_0']['attn']['q_einsum']['lora'],
      run.params['layer_0']['attn']['q_einsum']['lora'],
  )


def test_export_for_servers(run, tmp_path, run_command):
  """What one of them refuses is a line, and nothing is written."""
  run, cfg = run
  lora = tmp_path / 'lora'
  done = run_command(
      'export', *cfg, f'--out={lora}', '--for=vllm', '--base_model=a/b'
  )
  assert done.returncode == 0, done.stderr
  config = json.loads((lora / 'adapter_config.json').read_text())
  assert config['base_model_name_or_path'] == 'a/b'
  checked = run_command('check', *cfg, f'--peft={lora}', '--for=vllm')
  assert checked.returncode == 0, checked.stdout + checked.stderr
  assert 'vllm (vllm 0.33.0) serves it as trained.' in checked.stdout
  checked = run_command('check', *cfg, f'--peft={lora}', '--for=sglang')
  assert checked.returncode == 1
  assert 'refuses: q_proj without v_proj' in checked.stdout
  done = run_command('export', *cfg, f'--out={tmp_path / "x"}', '--for=sglang')
  assert done.returncode == 1
  assert 'sglang (sglang 0.5.23) refuses' in done.stderr
  assert not (tmp_path / 'x').exists()
  done = run_command('export', *cfg, f'--out={tmp_path / "mlx"}', '--for=mlx')
  assert done.returncode == 0, done.stderr
  assert 'Adapter of mlx-lm' in done.stdout
  assert (tmp_path / 'mlx' / 'adapters.safetensors').exists()
  done = run_command('check', *cfg, '--for=vllm')
  assert (done.returncode, '--peft=FOLDER' in done.stderr) == (1, True)


@pytest.mark.parametrize(
    'command,args,match',
    [
        (
            'export',
            ('--format=hf', '--for=vllm'),
            '--format=hf has no --for=vllm',
        ),
        (
            'export',
            ('--format=hf_base', '--experts=stacked'),
            '--format=hf_base has no --experts=stacked',
        ),
        ('export', ('--hf_files=/x',), '--format=peft has no --hf_files=/x'),
        (
            'export',
            ('--for=mlx', '--base_model=a/b'),
            '--for=mlx has no --base_model=a/b',
        ),
        ('fuse', ('--hf_files=/x',), '--format=gemma has no --hf_files=/x'),
    ],
)
def test_options_that_would_change_nothing(
    run, tmp_path, run_command, command, args, match
):
  _, cfg = run
  out = tmp_path / 'x'
  done = run_command(command, *cfg, f'--out={out}', *args)
  assert done.returncode == 1
  assert match in done.stderr
  assert not out.exists()


def _say(run_command, monkeypatch, lines, *args):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('\n'.join(lines) + '\n'))
  flags = ('--max_new_tokens=6', '--cache_length=128')
  return run_command('chat', *args, *flags)


def test_chat_with_a_run(run, run_command, monkeypatch):
  """Turn by turn, in the tokens of its data, with LoRA and without."""
  run, cfg = run
  base = run.model.clone(enabled=False)

  def sample(prompt, model):
    sampler = sampling.sampler(
        model,
        run.params,
        cls=gm.text.Gemma4Sampler,
        cache_length=128,
        max_out_length=6,
        pad_length=128,
    )
    return sampler.sample(prompt).split('<turn|>')[0]

  model = '<turn|>\n<|turn>model\n<|channel>thought\n<channel|>'
  prompt = f'<|turn>user\nGood morning{model}'
  first = sample(prompt, run.model)
  longer = f'{prompt}{first}<turn|>\n<|turn>user\nAnd you?{model}'
  answers = {
      'first': first,
      'second': sample(longer, run.model),
      'base': sample(longer, base),
      'first of the base': sample(prompt, base),
  }
  assert len(set(answers.values())) == 4

  def said(*names):
    return ''.join(f'{answers[name]}\n' for name in names)

  lines = ['Good morning', '', 'And you?', '/new', 'Good morning', '/base']
  done = _say(run_command, monkeypatch, [*lines, 'And you?', '/lora'], *cfg)
  assert done.returncode == 0, done.stderr
  assert done.stdout == said('first', 'second', 'first', 'base')
  assert 'LoRA off.' in done.stderr
  lines = ['Good morning', '/new', '/lora', 'Good morning', '/quit', 'Never']
  done = _say(run_command, monkeypatch, lines, *cfg, '--no-lora')
  assert done.stdout == said('first of the base', 'first')


def test_chat_with_a_peft_folder(run, run_command, monkeypatch, tmp_path):
  """Says what the run says, without the run."""
  _, cfg = run
  folder = tmp_path / 'lora'
  assert not run_command('export', *cfg, f'--out={folder}').returncode
  want = _say(run_command, monkeypatch, ['Good morning', '/base', 'So?'], *cfg)
  lines = ['Good morning', '/base', 'So?']
  done = _say(run_command, monkeypatch, lines, cfg[0], f'--peft={folder}')
  assert done.returncode == 0, done.stderr
  assert (done.stdout, str(folder) in done.stderr) == (want.stdout, True)
  done = _say(run_command, monkeypatch, lines, cfg[0], '--peft=/no/such')
  assert (done.returncode, done.stdout) == (1, '')
  assert '/no/such' in done.stderr


@pytest.mark.parametrize('format', ['gemma', 'hf'])
def test_chat_with_a_merged_model(format, run, run_command, tmp_path):
  """Says what the run says, in one answer, without the run."""
  _, cfg = run
  out = f'{tmp_path / "out"}'
  assert not run_command(
      'fuse', *cfg, f'--out={out}', f'--format={format}'
  ).returncode
  flags = ('--prompt=Good morning', '--max_new_tokens=6', '--cache_length=128')
  want = run_command('chat', *cfg, *flags)
  assert (want.returncode, want.stderr) == (0, '')
  done = run_command('chat', cfg[0], f'--merged={out}', *flags)
  assert (done.returncode, done.stdout) == (0, want.stdout), done.stderr
  base = run_command('chat', *cfg, *flags, '--nolora')
  assert base.stdout != want.stdout
  done = run_command('chat', cfg[0], f'--merged={out}', *flags, '--nolora')
  assert (done.returncode, done.stdout) == (1, '')
  assert 'has no base to ask' in done.stderr


def test_what_cannot_be_said(run, run_command, monkeypatch):
  """Is a line, and the next one is answered."""
  _, cfg = run
  messages = {
      '/bse': "'/bse' is no command. /base: the base answers",
      'so <turn|> what': "has the turn tag '<turn|>'",
      '<|image|>': 'takes no images',
      'word ' * 200: 'does not fit into --cache_length=128. Begin anew',
  }
  done = _say(run_command, monkeypatch, [*messages, 'Good morning'], *cfg)
  assert done.returncode == 1
  for line, message in messages.items():
    assert message in done.stderr, line
  assert 'Traceback' not in done.stderr
  assert len(done.stdout.splitlines()) == 1


def test_chat_with_what_is_no_run(run, run_command, monkeypatch, tmp_path):
  _, (cfg, workdir) = run
  for args, message in (
      ((f'--cfg.workdir={tmp_path / "none"}',), 'there is no such path'),
      ((f'--workdir={tmp_path / "none"}',), 'there is no such path'),
      ((f'--cfg.workdir={tmp_path}',), 'no checkpoint'),
      ((workdir, '--step=7'), 'Available steps: [3]'),
      ((workdir, '--cfg.model.rank=3'), 'checkpoint 2, config 3'),
      ((workdir, '--cfg.model.init_lora_weights=pissa'), 'pissa'),
      ((), '--workdir=... is missing'),
  ):
    done = _say(run_command, monkeypatch, ['Hello'], cfg, *args)
    assert (done.returncode, done.stdout) == (1, '')
    assert message in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('fuse', '--format=peft', '--out=x'), "not one of 'gemma', 'hf'"),
        (('fuse', '--out=x'), '--workdir=... is missing'),
        (('fuse', '--out='), "'--out': it is empty"),
        (('chat', '--peft='), "'--peft': it is empty"),
        (('fuse', '--out=x', '--max_shard_gb=nan'), 'is not a finite number'),
        (('chat', '--cache_length=0'), '0 is not in the range x>=1'),
        (('chat', '--step=x'), "'x' is not a valid integer.\n"),
        (('summary', '--model.rank=8'), 'Did you mean --cfg.model.rank=8?'),
        (('summary', '--cfg.model.rank=x'), "rank: takes int. Got: 'x'"),
        (('summary', '--cfg.model.rank='), "rank: takes int. Got: ''"),
        (('eval',), '--workdir=... is missing'),
        (('eval', '--workdir=/', '--eval=smapling'), "mean 'sampling'?"),
        (
            ('eval', '--workdir=/no/such'),
            '--workdir=/no/such: there is no such',
        ),
        (('eval', '--workdir=/'), 'there is no checkpoint in /'),
        (('export',), "Missing option '--out'"),
        (('vertex', '--workdir=gs://b/run'), '--region=... is missing'),
        (('vertex', '--region=us-east5'), '--workdir=gs://... is missing'),
        (('vertex', *_JOB, '--topology=v6e:3x3'), 'Did you mean v6e:'),
        (('summary', '--rank=8'), 'Did you mean --cfg.model.rank=8?'),
        (('plan', '--bach=8'), 'no option --bach. Did you mean --batch?'),
        (('summary', 'fuse'), "takes options alone. Got: 'fuse'"),
        (('plan', '--batch=many'), "'many' is not a valid integer"),
    ],
)
def test_what_a_command_lacks(args, message, run_command):
  done = run_command(*args, _CONFIG)
  assert done.returncode == 1
  assert message in done.stderr


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (('sumary', _CONFIG), "no command 'sumary'. Did you mean 'summary'?"),
        ((_CONFIG, 'summary'), 'comes behind a command'),
        (('-\x1b[2J', 'summary'), '-\\x1b[2J comes behind a command'),
        (('summary',), '--cfg=... is missing'),
        (('summary', '--hlep'), 'no option --hlep. Did you mean --help?'),
        (('help',), 'write gemma4_lora --help'),
        (('train', '--cfg=quickstrt'), 'Did you mean quickstart?'),
        (('train', '--cfg='), "'--cfg': it is empty"),
    ],
)
def test_what_is_no_command(args, message, run_command):
  done = run_command(*args)
  assert (done.returncode, done.stdout) == (1, '')
  assert message in done.stderr
  assert done.stderr.count('\n') == done.stderr.count('gemma4_lora: ') == 1


def test_what_takes_no_time_is_looked_at_before_the_imports():
  """A user who misspelt a path does not wait for JAX to hear of it."""
  lines = [
      'import sys',
      'from gemma4_lora.commands import _cli',
      'for name, flag in [("check", "--peft=/no"), ("chat", "--workdir=/no")]:',
      '  assert _cli.run([name, "--cfg=quickstart", flag]) == 1',
      'assert _cli.run(["plan", "--cfg=quickstrt"]) == 1',
      'assert not {"jax", "kauldron", "absl"} & {*sys.modules}',
  ]
  done = subprocess.run(
      [sys.executable, '-c', '\n'.join(lines)],
      cwd=_ROOT,
      capture_output=True,
      text=True,
      check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stderr.count('=/no: there is no such path.\n') == 2


@pytest.mark.parametrize('where', ['_cli', '_command'])
def test_interrupted_is_a_line(where, run_command, monkeypatch):
  """In any command, and in the one that runs before all others."""

  def interrupt(*_, **__):
    raise KeyboardInterrupt

  if where == '_cli':
    monkeypatch.setattr(_look_commands.summary, 'callback', interrupt)
    done = run_command('summary', _CONFIG)
  else:
    monkeypatch.setattr(_command, 'main', interrupt)
    done = run_command('doctor')
  assert (done.returncode, done.stdout) == (130, '')
  assert done.stderr.strip() == 'gemma4_lora: stopped.'


@pytest.mark.parametrize('shell', ['bash', 'zsh', 'fish'])
def test_completion(shell, run_command, monkeypatch):
  monkeypatch.setenv('_GEMMA4_LORA_COMPLETE', f'{shell}_source')
  assert 'gemma4_lora' in run_command().stdout
  monkeypatch.setenv('_GEMMA4_LORA_COMPLETE', f'{shell}_complete')
  for words, number, wanted in (
      ('gemma4_lora ev', 1, 'eval'),
      ('gemma4_lora plan --sw', 2, '--sweep'),
  ):
    monkeypatch.setenv('COMP_WORDS', words)
    # fish gives the word itself.
    monkeypatch.setenv(
        'COMP_CWORD', words.split()[-1] if shell == 'fish' else str(number)
    )
    assert wanted in run_command().stdout


def test_help_lists_the_commands(run_command):
  done = run_command('--help')
  assert (done.returncode, done.stderr) == (0, '')
  listed = re.findall(r'^  (\w+)  ', done.stdout, re.M)
  assert listed == [*_commands.COMMANDS]
  assert run_command('--version').stdout.startswith('gemma4_lora, version 0.')


@pytest.mark.parametrize('name', _commands.COMMANDS)
def test_help_of_a_command_is_its_own(name, run_command):
  done = run_command(name, '--help')
  assert (done.returncode, done.stderr) == (0, '')
  # That of another, which only `plan` has.
  assert ('--sweep' in done.stdout) == (name == 'plan')
  example = done.stdout[done.stdout.index('Example:') :]
  assert f'gemma4_lora {name}' in example
  # The one line of the list says no other thing.
  assert _commands.COMMANDS[name].load().help


def test_vertex_prints_the_job(run_command, monkeypatch):
  """Of the config as it stands on the command line, with what changes it."""
  monkeypatch.setenv('GOOGLE_CLOUD_PROJECT', 'my-project')
  done = run_command(
      *('vertex', _CONFIG, '--cfg.seed=7', "--cfg.model.targets=['q', 'v']"),
      *('--topology=v5e:2x2', *_JOB),
  )
  assert done.returncode == 0, done.stderr
  (pool,) = jobs_yaml.from_yaml(done.stdout).worker_pool_specs
  assert pool.machine_spec.machine_type == 'ct5lp-hightpu-4t'
  container = pool.container_spec
  assert container.image_uri.startswith('us-east5-docker.pkg.dev/my-project/')
  assert list(container.args) == [
      '--cfg=configs/gemma4_e2b_lora_mtnt.py',
      '--cfg.workdir=gs://b/run',
      '--cfg.seed=7',
      "--cfg.model.targets=['q', 'v']",
  ]


def test_workdir_is_one_flag(run_command):
  args = ('vertex', _CONFIG, *_JOB)
  want = run_command(*args).stdout
  # As in `_JOB`, without its `--workdir`, and with both.
  without = [arg for arg in args if not arg.startswith('--workdir')]
  assert run_command(*without, '--cfg.workdir=gs://b/run').stdout == want
  assert run_command(*args, '--cfg.workdir=gs://b/run').stdout == want
  done = run_command(*args, '--cfg.workdir=gs://b/other')
  assert done.returncode == 1
  assert (
      'gemma4_lora: --workdir=gs://b/run and --cfg.workdir=gs://b/other are one'
      ' flag, and differ'
  ) in done.stderr


def test_vertex_asks_the_planner(run_command):
  """Which has no answer, for three sequences on four chips, and says why."""
  args = (
      *('vertex', f'--cfg={_ROOT}/configs/quickstart.py', *_JOB, '--plan'),
      *('--cfg.train_ds.batch_size=3', '--topology=v6e:2x2', '--cache=none'),
  )
  done = run_command(*args)
  assert (done.returncode, done.stdout) == (2, '')
  assert 'Planning for v6e:2x2' in done.stderr
  assert 'Nothing was submitted' in done.stderr
  done = run_command(*args, '--force')
  assert done.returncode == 0, done.stderr
  assert jobs_yaml.from_yaml(done.stdout).worker_pool_specs


def test_vertex_prints_a_dockerfile_for_the_config(run_command):
  done = run_command('vertex', _CONFIG, '--dockerfile')
  assert done.returncode == 0
  assert 'COPY configs configs\n' in done.stdout
  assert done.stdout.endswith('["python", "-m", "gemma4_lora", "train"]\n')
  for name in re.findall(r'^COPY (.*) \S+$', done.stdout, re.M):
    for path in name.split():
      assert (_ROOT / path).exists()
