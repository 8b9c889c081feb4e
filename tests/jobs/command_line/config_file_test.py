"""Each way in which a config can be wrong is a line that says where."""

import pytest

_HEAD = """
from kauldron import konfig

with konfig.imports():
  from kauldron import kd


"""
_GOOD = _HEAD + (
    'def get_config():\n'
    "  return kd.train.Trainer(seed=0, model=kd.nn.Identity(), workdir='w')\n"
)


def _of_file(source, message):
  return pytest.param(source, (), message, id=message)


def _of_flags(*flags_and_message):
  *flags, message = flags_and_message
  return pytest.param(_GOOD, flags, message, id=message)


@pytest.mark.parametrize(
    ('source', 'flags', 'message'),
    [
        _of_file('x = (1,\n', "{file}:1: SyntaxError: '(' was never closed"),
        _of_file('import nope\n', '{file}:1: ModuleNotFoundError: No module'),
        _of_file('\nint("x")\n', "{file}:2: ValueError: invalid literal"),
        _of_file('\nopen("/nope")\n', '{file}: FileNotFoundError: [Errno 2]'),
        _of_file(
            _HEAD + 'def get_config():\n  return konfig.x\n',
            "{file}:9: AttributeError: module 'kauldron.konfig' has no",
        ),
        _of_file(
            _HEAD + 'def get_config():\n  kd.train.Trainer()\n',
            '--cfg={file}: get_config() returns no config, but NoneType',
        ),
        _of_file(
            'get_config = None\ndel get_config\n',
            '--cfg={file}: Module must have a get_config function',
        ),
        _of_file(
            _HEAD
            + 'def get_config():\n  return konfig.ConfigDict({"model":'
            ' kd.nn.Identitie()})\n',
            "has no attribute 'Identitie'",
        ),
        _of_flags('--cfg.sed=1', 'Trainer has no field \'sed\'. Did you mean --cfg.seed?'),
        _of_flags('--cfg.model.x=1', "--cfg.model.x: kauldron.kd.nn.Identity has no field 'x'."),
        _of_flags('--cfg.modle.x=1', '--cfg.modle.x: Error accessing'),
        _of_flags('--cfg.seed=x', "--cfg.seed: takes int. Got: 'x'"),
        _of_flags('--cfg.seed', '7', '--cfg.seed 7: write --cfg.seed=7.'),
        _of_flags('--cfg.seed', '-7', '--cfg.seed -7: write --cfg.seed=-7.'),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_line(source, flags, message, run_command, tmp_path):
  file = tmp_path / 'my_config.py'
  file.write_text(source)
  done = run_command('summary', f'--cfg={file}', *flags)
  assert done.returncode == 1
  assert done.stderr.startswith('gemma4_lora: ')
  assert message.replace('{file}', str(file)) in done.stderr
  assert done.stderr.count('\n') == 1


@pytest.mark.parametrize(
    ('given', 'message'),
    [
        ('my_confg.py', 'my_confg.py: there is no such file. Did you mean'),
        ('a\nb.py', "--cfg='a\\nb.py': there is no such file"),
        ('', "'--cfg': it is empty"),
        ('.', '--cfg=. cannot be read: Is a directory.'),
        ('gs://bucket/config.py', 'a config is a Python file on this machine'),
        ('my_config.py:tiny', 'takes 0 positional arguments but 1 was given'),
    ],
)
def test_what_is_no_config(given, message, run_command, tmp_path, monkeypatch):
  (tmp_path / 'my_config.py').write_text(_GOOD)
  monkeypatch.chdir(tmp_path)
  done = run_command('summary', f'--cfg={given}')
  assert done.returncode == 1
  assert message in done.stderr
  assert done.stderr.count('\n') == 1


def test_arguments_that_konfig_would_take(run_command, tmp_path):
  """Fields that the config does not set are set, with its other names."""
  file = tmp_path / 'my_config.py'
  file.write_text(_GOOD)
  done = run_command(
      *('summary', f'--cfg={file}', '--cfg.num_train_steps=3'),
      *('--cfg.model.name=x', '--cfg.__args__.any=1', '--cfg.evals.any=1'),
  )
  assert 'takes a g4.nn.LoRA' in done.stderr  # The config is read.


def test_arguments_by_the_names_of_peft(run_command, tmp_path):
  file = tmp_path / 'my_config.py'
  file.write_text(
      _HEAD.replace('import kd\n', 'import kd\n  from gemma4_lora import g4\n')
      + 'def get_config():\n'
      "  return kd.train.Trainer(workdir='w', model=g4.nn.LoRA(\n"
      '      r=8, lora_alpha=16, model=g4.testing.Gemma4_31B()))\n'
  )
  done = run_command('summary', f'--cfg={file}')
  assert done.returncode == 1
  assert 'write rank= for r=, alpha= for lora_alpha=. For' in done.stderr
  assert done.stderr.count('\n') == 1


def test_what_others_raise_keeps_its_traceback(run_command, tmp_path):
  file = tmp_path / 'my_config.py'
  file.write_text(_GOOD)
  with pytest.raises(TypeError, match='no keyword arguments'):
    run_command(
        *('summary', f'--cfg={file}', '--cfg.model.__qualname__=operator:not_'),
        '--cfg.model.a=1',
    )
