"""How many examples and tokens per second one core makes of rows.

```sh
python -m tests.benchmarks.data
python -m tests.benchmarks.vocabulary /tmp/large.model
python -m tests.benchmarks.data --vocabulary=/tmp/large.model
```

Conversations of six turns, with a system turn, tools and thoughts; short pairs in
each layout; texts. They go through the tiny tokenizer, or that of a file. Counted
are the tokens of examples, not of padding, in seconds of processor time: other jobs
on the machine do not count.
"""

import argparse
import functools
import itertools
import json
import pathlib
import tempfile
import time

from kauldron import kd
import numpy as np

from gemma4_lora import g4

_NUM_ROWS = 2000


def main(args=()):
  parser = argparse.ArgumentParser()
  parser.add_argument('--vocabulary', help='a SentencePiece file')
  path = parser.parse_args(args).vocabulary
  tokenizer = g4.testing.Gemma4Tokenizer(**({'path': path} if path else {}))
  print(f'| {"what":33} | tokens | examples/s/core | tokens/s/core |')
  print(f'|{"-" * 35}|--------|-----------------|---------------|')
  for name, (examples, tokens, seconds) in measure(
      _NUM_ROWS, tokenizer
  ).items():
    print(
        f'| {name:33} | {tokens} | {examples / seconds:15,.0f} |'
        f' {tokens / seconds:13,.0f} |'
    )


def measure(num_rows, tokenizer):
  """Returns the examples, tokens and seconds of this process, of each way."""
  rows = _rows(num_rows)
  pairs = list(
      itertools.islice(
          itertools.cycle(g4.testing.EnFrPairs(split='train')), num_rows
      )
  )
  chat = functools.partial(_chat, tokenizer)
  short = dict(tokenizer=tokenizer, max_length=128)
  texts = [
      {'text': ' '.join(pair['fr'] for pair in pairs[i : i + 10])}
      for i in range(num_rows)
  ]
  ways = {
      'ChatTask, dialog': lambda: _mapped(chat(), rows),
      'ChatTask, transformers': lambda: _mapped(
          chat(template='transformers'), rows
      ),
      'PackedSource, plan and rows': lambda: _packed(chat(), rows),
      'batches of Kauldron': lambda: _batches(chat(), rows),
      'lines of a file': lambda: _lines(chat(), rows),
      'TextTask': lambda: _mapped(
          g4.data.TextTask(tokenizer=tokenizer, max_length=1024), texts
      ),
      'PreferenceTask': lambda: _mapped(
          g4.data.PreferenceTask(**short),
          [_laid_out(x, 'prompt_response', chosen=True) for x in pairs],
      ),
  }
  for layout in _SHORT:
    ways[f'ChatTask, pairs, {layout}'] = functools.partial(
        _mapped,
        g4.data.ChatTask(layout=layout, **short),
        [_laid_out(x, layout) for x in pairs],
    )
  return {name: _timed(run) for name, run in ways.items()}


_SHORT = (
    'prompt_response',
    'messages',
    'sharegpt',
    'alpaca',
    'gemini',
    'responses',
)


def _timed(run):
  begin = time.process_time()
  examples, tokens = run()
  return examples, tokens, time.process_time() - begin


def _rows(number):
  pairs = list(g4.testing.EnFrPairs(split='train'))
  rng = np.random.default_rng(0)
  tool = {'name': 'look_up', 'parameters': {'type': 'object'}}
  rows = []
  for _ in range(number):
    messages = [{'role': 'system', 'content': 'Translate.'}]
    for i in rng.choice(len(pairs), 3):
      messages += [
          {'role': 'user', 'content': pairs[i]['en']},
          {
              'role': 'assistant',
              'content': pairs[i]['fr'],
              'reasoning': 'Hm.',
          },
      ]
    rows.append({'messages': messages, 'tools': [tool]})
  return rows


def _laid_out(pair, layout, *, chosen=False):
  """A pair as a row of a layout."""
  en, fr = pair['en'], pair['fr']
  if chosen:
    return {'prompt': en, 'chosen': fr, 'rejected': en}
  return {
      'prompt_response': {'prompt': en, 'response': fr},
      'messages': {
          'messages': [
              {'role': 'user', 'content': en},
              {'role': 'assistant', 'content': fr},
          ]
      },
      'sharegpt': {
          'conversations': [
              {'from': 'human', 'value': en},
              {'from': 'gpt', 'value': fr},
          ]
      },
      'alpaca': {'instruction': en, 'input': '', 'output': fr},
      'gemini': {
          'contents': [
              {'role': 'user', 'parts': [{'text': en}]},
              {'role': 'model', 'parts': [{'text': fr}]},
          ]
      },
      'responses': {'input': en, 'output': fr},
  }[layout]


def _chat(tokenizer, **kwargs):
  return g4.data.ChatTask(
      layout='messages',
      in_tools='tools',
      thinking='strip',
      tokenizer=tokenizer,
      max_length=1024,
      **kwargs,
  )


def _num_tokens(example):
  return int((example['target'] > 0).sum())


def _mapped(task, rows):
  return len(rows), sum(_num_tokens(task.map(row)) for row in rows)


def _batches(task, rows):
  dataset = kd.data.py.DataSource(
      data_source=rows,
      shuffle=True,
      seed=0,
      num_epochs=1,
      batch_size=16,
      num_workers=0,
      transforms=[task],
  )
  return len(rows), sum(map(_num_tokens, dataset))


def _packed(task, rows):
  source = g4.data.PackedSource(data_source=rows, transforms=[task])
  return len(rows), sum(map(_num_tokens, source))


def _lines(task, rows):
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / 'rows.jsonl'
    path.write_text('\n'.join(map(json.dumps, rows)))
    source = g4.data.Files(path=path, shuffle=False).data_source
    return _mapped(task, source)


if __name__ == '__main__':
  import sys

  main(sys.argv[1:])
