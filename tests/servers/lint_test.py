"""What is said of servers, on folders that each would trip over."""

import pytest

from gemma4_lora import g4
from gemma4_lora.servers import _lint
from gemma4_lora.servers import _servers
from tests.lib import random_params

_WHO = 'gemma4_lora check'


def _model(size='E2B', **kwargs):
  base = getattr(g4.testing, f'Gemma4_{size}')
  kwargs = {'rank': 2, 'targets': ['q', 'o']} | kwargs
  return g4.nn.LoRA(model=base(tokens='x'), **kwargs)


def _findings(tmp_path, model, name, **kwargs):
  path = tmp_path / 'x'
  g4.hf.save_peft(path, model=model, params=random_params.lora(model), **kwargs)
  found = _lint.of_folder(
      path, _servers.SERVERS[name], model_config=model.config, who=_WHO
  )
  return [f'{x.kind} {x.text}' for x in found]


_DORA = {'use_dora': True}
_RANKS = {'targets': [g4.targets.Rule('down', rank=3, alpha=9), 'o']}
_K = {'targets': ['k', 'v', 'q']}
_FULL = {'modules_to_save': 'final_norm'}


@pytest.mark.parametrize(
    'server,size,kwargs,wanted',
    [
        ('vllm', 'E2B', _DORA, 'refuses DoRA; take the merged model'),
        ('vllm', 'E2B', _FULL, 'refuses modules_to_save'),
        ('vllm', 'E2B', {'rank': 24}, 'needs --max-lora-rank=32'),
        ('vllm', 'E2B', {'rank': 600}, 'refuses rank 600: its largest is 512'),
        ('vllm', '31B', _K, 'ignores LoRA on the values of layers '),
        ('vllm', '26B_A4B', {'targets': 'experts'}, 'needs --enable-mixed-moe'),
        (
            'vllm',
            '26B_A4B',
            {'targets': ['q', 'expert_down']},
            'refuses stacked experts of which only one',
        ),
        ('sglang', 'E2B', _DORA, 'refuses DoRA'),
        ('sglang', 'E2B', {}, 'refuses q_proj without v_proj, in layers '),
        ('sglang', '31B', {'targets': 'all-linear'}, 'refuses q_proj without'),
        ('sglang', 'E2B', _RANKS, 'refuses several ranks'),
        ('sglang', 'E2B', _RANKS, 'ignores alpha_pattern'),
        ('sglang', 'E2B', {'use_rslora': True}, 'ignores use_rslora'),
        ('sglang', 'E2B', _FULL, 'ignores modules_to_save'),
        (
            'sglang',
            'E2B',
            {'targets': ['o', 'per_layer_projection']},
            'refuses 6 modules that its Gemma 4 has no LoRA for',
        ),
        ('llama.cpp', 'E2B', _DORA, 'refuses DoRA'),
        ('llama.cpp', 'E2B', _FULL, 'refuses modules_to_save'),
        ('llama.cpp', 'E2B', {'use_rslora': True}, 'ignores use_rslora'),
        ('llama.cpp', 'E2B', _RANKS, 'ignores alpha_pattern'),
        (
            'llama.cpp',
            '26B_A4B',
            {'targets': 'experts'},
            'refuses LoRA on rout',
        ),
        (
            'llama.cpp',
            'E2B',
            {'targets': 'text'},
            'ignores per_layer_model_projection',
        ),
        ('llama.cpp', 'E2B', {}, 'needs --base DIR'),
        ('mlx', 'E2B', _FULL, 'refuses modules_to_save'),
        (
            'mlx',
            'E2B',
            {'init_lora_weights': 'pissa'},
            "ignores init_lora_weights='pissa'",
        ),
        (
            'vllm',
            'E2B',
            {'init_lora_weights': 'olora'},
            "refuses init_lora_weights='olora'",
        ),
    ],
)
def test_says(tmp_path, server, size, kwargs, wanted):
  found = _findings(tmp_path, _model(size, **kwargs), server)
  assert any(x.startswith(wanted) for x in found), found


@pytest.mark.parametrize(
    'server,size,kwargs',
    [
        ('peft', '26B_A4B', {'targets': ['text', 'experts']} | _DORA),
        ('vllm', 'E2B', {'targets': 'text'} | _RANKS | {'use_rslora': True}),
        ('vllm', '31B', _K),
        ('llama.cpp', 'E4B', _RANKS | {'use_rslora': True}),
        ('llama.cpp', '31B', _K),
        ('mlx', 'E2B', _RANKS | _DORA),
    ],
)
def test_has_no_problem_with_what_is_written_for_it(
    tmp_path, server, size, kwargs
):
  if 'experts' in str(kwargs):
    kwargs = {'targets': ['text', 'experts']}
  folder = {} if server == 'mlx' else {'server': server}
  found = _findings(tmp_path, _model(size, **kwargs), server, **folder)
  assert not [x for x in found if not x.startswith('needs')]


def test_patterns_of_whole_names_are_read(tmp_path):
  """Some layers of a kind: the config names each, with its prefix."""
  targets = [g4.targets.Rule('o', layers=0, rank=32, alpha=5.0), 'o']
  found = _findings(tmp_path, _model(targets=targets), 'vllm')
  assert found == ['needs --max-lora-rank=32 (there is rank 32)']
  config = (tmp_path / 'x' / 'adapter_config.json').read_text()
  assert 'language_model' in config
  (tmp_path / 'x').rename(tmp_path / 'y')
  found = _findings(tmp_path, _model(targets=targets), 'llama.cpp')
  assert any(x.startswith('ignores alpha_pattern') for x in found)


def test_llama_cpp_knows_the_base_by_its_name(tmp_path):
  found = _findings(
      tmp_path, _model(), 'llama.cpp', base_model_name_or_path='a/b'
  )
  assert found == []


def test_experts_named_for_earlier_vllm(tmp_path):
  model = _model('26B_A4B', targets='experts')
  path = tmp_path / 'x'
  g4.hf.save_peft(
      path, model=model, params=random_params.lora(model), server='vllm'
  )
  data = (path / 'adapter_model.safetensors').read_bytes()
  size = int.from_bytes(data[:8], 'little')
  header = data[8 : 8 + size].replace(b'.experts.', b'.moe.experts.')
  header += b' ' * (-len(header) % 8)
  (path / 'adapter_model.safetensors').write_bytes(
      len(header).to_bytes(8, 'little') + header + data[8 + size :]
  )
  (path / 'gemma4_lora_commit.json').unlink(missing_ok=True)
  (found,) = _lint.of_folder(
      path, _servers.SERVERS['vllm'], model_config=model.config, who=_WHO
  )
  assert found.kind == 'ignores'
  assert 'named for earlier versions' in found.text


@pytest.mark.parametrize(
    'server,kwargs,match',
    [
        ('vllm', _DORA, r'vllm \(vllm 0\.33\.0\) refuses DoRA'),
        ('llama.cpp', _FULL, 'llama.cpp .* refuses modules_to_save'),
        ('sglang', {}, 'sglang .* refuses q_proj without v_proj'),
    ],
)
def test_nothing_is_written_that_a_server_refuses(
    tmp_path, server, kwargs, match
):
  model = _model(**kwargs)
  params = random_params.lora(model)
  with pytest.raises(ValueError, match=match):
    g4.hf.save_peft(tmp_path / 'x', model=model, params=params, server=server)
  assert not list(tmp_path.iterdir())


def test_an_unknown_server():
  model = _model()
  with pytest.raises(
      ValueError, match=r"server=.* takes one of \['peft', 'vllm'"
  ):
    g4.hf.save_peft('x', model=model, params={}, server='mlx')


def test_report_says_which_version_was_read(tmp_path):
  model = _model()
  params = random_params.lora(model)
  g4.hf.save_peft(tmp_path / 'x', model=model, params=params)
  text, served = _lint.report(
      tmp_path / 'x', 'sglang', model_config=model.config, who=_WHO
  )
  assert not served
  assert text.startswith(
      'sglang (sglang 0.5.23) does not serve it as trained.\n- refuses: '
  )
  text, served = _lint.report(
      tmp_path / 'x', 'vllm', model_config=model.config, who=_WHO
  )
  assert served
  assert text == 'vllm (vllm 0.33.0) serves it as trained.'
  text, served = _lint.report(
      tmp_path / 'x', 'mlx', model_config=model.config, who=_WHO
  )
  assert served
  assert text.endswith(
      'from a folder of its own: gemma4_lora export --for=mlx.'
  )
