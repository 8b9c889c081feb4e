"""`python -m gemma4_lora show`: counts, reasons and pictures of a config's data."""

import json
import re

import pytest

from gemma4_lora import g4

_TOKENIZER = g4.testing.Gemma4Tokenizer()
_CONFIG = """
from kauldron import konfig

with konfig.imports():
  from kauldron import kd
  from gemma4_lora import g4


def get_config():
  tokenizer = g4.testing.Gemma4Tokenizer()
  chat = g4.data.ChatTask(
      layout="messages", tokenizer=tokenizer, max_length=32, truncate=True
  )
  text = g4.data.TextTask(tokenizer=tokenizer, max_length=16)
  texts = g4.data.PackedSource(
      data_source=g4.data.Files(path="{folder}/texts.jsonl", shuffle=False),
      transforms=[text],
  )
  return konfig.ConfigDict({
      "model": None,
      "train_ds": g4.data.Files(
          path="{folder}/chats.jsonl",
          shuffle=True,
          transforms=[chat, kd.data.py.Elements(keep=["input"])],
      ),
      "evals": {
          "mix": {"ds": kd.data.py.Mix(datasets=[
              g4.data.Files(
                  path="{folder}/pairs.jsonl",
                  shuffle=True,
                  transforms=[g4.data.PreferenceTask(
                      tokenizer=tokenizer, max_length=32
                  )],
              ),
              kd.data.py.DataSource(data_source=texts, shuffle=True),
          ])},
          "sampling": {"ds": g4.data.Files(
              path="{folder}/pairs.jsonl",
              shuffle=True,
              transforms=[g4.data.ChatTask(
                  in_response="chosen", tokenizer=tokenizer, sampling=True
              )],
          )},
          "raw": {"ds": g4.data.Files(path="{folder}/x", shuffle=False)},
      },
  })
"""


def _chat(text, answer='Oui.'):
  return {
      'messages': [
          {'role': 'user', 'content': text},
          {'role': 'assistant', 'content': answer},
      ]
  }


def _write(path, rows):
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


@pytest.fixture(name='show')
def _show(tmp_path, run_command):
  """Runs the command on small datasets, and returns what it did."""
  chats = [_chat('Oui \033[31m.') for _ in range(8)]
  chats[3] = _chat('Oui.', 'Non. ' * 40)
  chats[5] = {'messages': [], 'a': '\033[32m'}
  chats[6] = None
  _write(tmp_path / 'chats.jsonl', chats)
  texts = [{'text': 'Oui. ' * n} for n in (1, 2, 20)]
  _write(tmp_path / 'texts.jsonl', texts)
  pair = {'prompt': 'Oui?', 'chosen': 'Oui.', 'rejected': 'Non.'}
  _write(tmp_path / 'pairs.jsonl', [pair] * 3)
  config = tmp_path / 'config.py'
  config.write_text(_CONFIG.replace('{folder}', str(tmp_path)))
  return lambda *args: run_command('show', f'--cfg={config}', *args)


def _counted(out):
  """The lines of counts, by their names."""
  return dict(re.findall(r'^  (\w+) +(.*)$', out, re.MULTILINE))


def test_counts_and_rows_of_training(show):
  done = show('--rows=1')
  assert done.returncode == 1, done.stderr
  assert done.stdout.startswith('train_ds: Files, ChatTask\n')
  counts = _counted(done.stdout)
  assert counts['rows'] == '8'
  assert counts['malformed'] == (
      '2 (25.00%), and max_malformed=0. Training would stop.'
  )
  assert "1 x Field 'messages' has no messages" in done.stdout
  assert '1 x The line is no JSON object' in done.stdout
  task = g4.data.ChatTask(
      layout='messages', tokenizer=_TOKENIZER, max_length=999
  )
  short, short_weights = task.tokens(_chat('Oui \033[31m.'))
  long, long_weights = task.tokens(_chat('Oui.', 'Non. ' * 40))
  tokens = 5 * len(short) + 33
  trained = 5 * short_weights.sum() + long_weights[:33].sum()
  assert counts['tokens'] == (
      f'{tokens}, of which {trained / tokens:.1%} are trained'
  )
  assert counts['lengths'].endswith(f'longest {len(long)}')
  assert counts['truncated'] == '1 (12.50%) to max_length=32'
  assert done.stdout.count('<|turn>user') == 1
  assert r'Oui \x1b[31m.<turn|>' in done.stdout
  assert '\033' not in done.stdout


def test_malformed_rows_are_shown_with_their_lines(show):
  done = show('--malformed')
  assert 'In row 5, line 6 of ' in done.stdout
  assert 'In row 6, line 7 of ' in done.stdout
  assert '<|turn>user' not in done.stdout
  assert '\033' not in done.stdout


def test_fewer_rows_are_counted_evenly_spread(show):
  done = show('--count=4', '--rows=0')  # Rows 0, 2, 4, 6.
  assert done.returncode == 1
  counts = _counted(done.stdout)
  assert counts['read'] == '4, evenly spread (--count=all reads all)'
  assert counts['malformed'].startswith('1 (25.00%)')
  assert 'truncated' in done.stdout and '<|turn>' not in done.stdout
  assert 'read' not in _counted(show('--count=all').stdout)


def test_a_mix_of_pairs_and_packed_texts(show):
  done = show('--dataset=evals.mix.ds', '--rows=9')
  assert done.returncode == 0
  pairs, texts = done.stdout.split('evals.mix.ds.datasets[1]: ')
  assert 'datasets[0]: Files, PreferenceTask\n' in pairs
  assert pairs.count('⟦Non.<turn|>⟧') == 3
  assert texts.startswith('PackedSource of Files, TextTask\n')
  lengths = [len(_TOKENIZER.encode('Oui. ' * n)) for n in (1, 2, 20)]
  num_pieces = sum(-(-n // 16) for n in lengths)
  assert num_pieces > 3
  tokens = sum(lengths) + num_pieces
  assert _counted(texts)['tokens'].startswith(f'{tokens}, of which')
  assert 'of packed rows of 16 tokens' in texts
  assert texts.count('<bos>') == min(num_pieces, 9)


def test_prompts_and_responses_of_sampling(show):
  done = show('--dataset=evals.sampling.ds', '--rows=1')
  assert done.returncode == 0
  assert '<|turn>model⏎\n⟦Oui.<turn|>⟧' in done.stdout


@pytest.mark.parametrize(
    ('args', 'message'),
    [
        (
            ['--dataset=evals.eval.ds'],
            "no dataset 'evals.eval.ds'. Set --dataset to one of ['train_ds',"
            " 'evals.mix.ds', 'evals.sampling.ds', 'evals.raw.ds']",
        ),
        (['--dataset=evals.raw.ds'], 'evals.raw.ds has no task of g4.data'),
        (['--count=0'], "'--count': '0' is no number of rows, and not all"),
    ],
)
def test_what_cannot_be_shown_is_a_line(show, args, message):
  done = show(*args)
  assert done.returncode == 1
  (line,) = done.stderr.splitlines()
  assert message in line
