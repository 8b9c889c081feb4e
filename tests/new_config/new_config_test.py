"""`gemma4_lora new`: each kind of data gets a config that builds."""

import json

import pytest

from gemma4_lora.gemma4 import _sizes
from gemma4_lora.new_config import _config_text
from gemma4_lora.new_config import _new_config
from gemma4_lora.new_config import _proposed_task
from tests.lib import shipped

_USER = {'role': 'user', 'content': 'Hello'}
_MODEL = {'role': 'assistant', 'content': 'Good morning'}
_ROWS = {
    'texts': ({'question': 'Hello', 'answer': 'Hi', 'id': 1}, 'lora'),
    'messages': ({'messages': [_USER, _MODEL], 'id': 1}, 'lora'),
    'other_column': ({'dialogue': [_USER, _MODEL]}, 'qlora'),
    'sharegpt': (
        {
            'conversations': [
                {'from': 'human', 'value': 'Hello'},
                {'from': 'gpt', 'value': 'Hi'},
            ]
        },
        'dora',
    ),
    'alpaca': ({'instruction': 'Add', 'input': '2, 2', 'output': '4'}, 'lora'),
    'text': ({'text': 'The cat sleeps.'}, 'lora'),
    'pairs': ({'prompt': 'Hi?', 'chosen': 'Hi.', 'rejected': 'No.'}, 'dpo'),
    'chats': (
        {
            'prompt': [_USER],
            'chosen': [_MODEL],
            'rejected': [_USER | _MODEL | {'content': 'No'}],
        },
        'dpo',
    ),
}
_ARGUMENTS = {
    'texts': dict(in_prompt='question', in_response='answer'),
    'messages': dict(layout='messages'),
    'other_column': dict(layout='messages', in_messages='dialogue'),
    'sharegpt': dict(layout='sharegpt'),
    'alpaca': dict(layout='alpaca'),
    'text': {},
    'pairs': {},
    'chats': {},
}


def _file(tmp_path, rows):
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return path


@pytest.mark.parametrize('kind', _ROWS)
def test_rows_get_their_task(kind):
  row, method = _ROWS[kind]
  proposal = _proposed_task.propose([row] * 3, preference=method == 'dpo')
  assert proposal.arguments == _ARGUMENTS[kind]
  assert proposal.num_read == 3 and proposal.reason is None
  assert {*proposal.keep} == {*row} - {'id'}


@pytest.mark.parametrize('kind', _ROWS)
def test_the_config_builds(kind, tmp_path):
  """On one chip and on eight; and tiny, its model takes the losses."""
  row, method = _ROWS[kind]
  file = tmp_path / 'my_config.py'
  for model, topology in (('E2B', 'v6e:1x1'), ('26B_A4B', 'v6e:2x4')):
    _new_config.write(
        str(file),
        model=model,
        path=str(_file(tmp_path, [row] * 20)),
        method=method,
        topology=topology,
        overwrite=True,
    )
    cfg = shipped.config(file)
    trainer = shipped.resolved(cfg, tmp_path / 'run')
    assert type(trainer.model.model).__name__ == f'Gemma4_{model}'
    assert bool(trainer.model.quantize) == (method == 'qlora')
    assert trainer.model.use_dora == (method == 'dora')
    assert trainer.model.with_reference == (method == 'dpo')
    assert trainer.num_train_steps == 5
    assert trainer.train_ds.path == str(tmp_path / 'rows.jsonl')
    tiny = shipped.resolved(shipped.config(file, tiny=True), tmp_path / 'run')
    assert type(tiny.model.model).__module__.startswith('gemma4_lora.testing')
    assert next(iter(tiny.train_ds))['loss_mask'].any()


def test_most_rows_win(tmp_path):
  """And the lines say how many, and why not the others."""
  good, bad = {'prompt': 'Hi', 'response': 'Hello'}, {
      'prompt': 'Hi',
      'response': '',
  }
  lines = _new_config.write(
      str(tmp_path / 'c.py'),
      model='E4B',
      path=str(_file(tmp_path, [good] * 8 + [bad] * 2)),
      method='lora',
      topology='cpu',
      overwrite=False,
  )
  assert 'ChatTask() reads 8 of the first 10' in lines[0]
  assert 'empty answer' in lines[1]


@pytest.mark.parametrize(
    ('changes', 'match'),
    [
        (dict(model='E3B'), '--model=E3B is none of E2B, '),
        (dict(method='dpo'), r'DPO needs the columns chosen and rejected'),
        (dict(topology='v6e:2*4'), '--topology=v6e:2.4 should be as v6e:2x4'),
        (dict(path='none.jsonl'), 'none.jsonl'),
        (dict(file='c.txt'), 'a config is a Python file'),
        (dict(file='gs://bucket/c.py'), 'A config is a local file'),
        (dict(file='no/such/c.py'), 'there is no such folder on this machine'),
        (dict(file='there.py'), 'there.py exists.*--overwrite'),
    ],
)
def test_what_cannot_be_written(changes, match, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'there.py').write_text('kept')
  arguments = (
      dict(
          file='c.py',
          model='E2B',
          path=str(_file(tmp_path, [{'prompt': 'Hi', 'response': 'Ho'}])),
          method='lora',
          topology='v6e:1x1',
          overwrite=False,
      )
      | changes
  )
  with pytest.raises((ValueError, OSError), match=match):
    _new_config.write(arguments.pop('file'), **arguments)
  assert (tmp_path / 'there.py').read_text() == 'kept'
  assert not (tmp_path / 'c.py').exists()


def test_rows_that_are_no_objects(tmp_path):
  path = tmp_path / 'rows.jsonl'
  path.write_text('no json\n')
  with pytest.raises(ValueError, match='rows.jsonl: none of the first 1 rows'):
    _new_config.write(
        str(tmp_path / 'c.py'),
        model='E2B',
        path=str(path),
        method='lora',
        topology='cpu',
        overwrite=False,
    )


def test_rows_that_nothing_reads():
  with pytest.raises(ValueError, match=r"columns \['a'\]"):
    _proposed_task.propose([{'a': 1}], preference=False)
  with pytest.raises(ValueError, match='messages.*: .*role'):
    _proposed_task.propose([{'messages': [{'x': 1}]}], preference=False)


def test_every_size_and_method_is_offered(run_command):
  help = run_command('new', '--help').stdout
  for name in _sizes.NAMES:
    assert name.removeprefix('Gemma4_') in help
  for method in _config_text.METHODS:
    assert method in help


@pytest.mark.parametrize(
    ('characters', 'tokens'),
    [(3, 128), (3000, 1024), (3100, 2048), (10**6, 8192)],
)
def test_length_of_most_rows(characters, tokens):
  assert _proposed_task.max_length([characters] * 10) == tokens
