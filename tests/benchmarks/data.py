"""How many tokens per second one core makes of conversations.

```sh
python -m tests.benchmarks.data
```

Conversations of six turns, with a system turn, tools and thoughts, through the
tiny tokenizer. Counted are the tokens of conversations, not of padding, in
seconds of processor time: other jobs on the machine do not count.
"""

import itertools
import time

from kauldron import kd
import numpy as np

from gemma4_lora import g4

_NUM_ROWS = 2000


def main():
  print(f'| {"what":30} | tokens | tokens/s/core |')
  print(f'|{"-" * 32}|--------|---------------|')
  for name, (tokens, seconds) in measure(_NUM_ROWS).items():
    print(f'| {name:30} | {tokens} | {tokens / seconds:13,.0f} |')


def measure(num_rows):
  """Returns the tokens and the seconds of this process, of each way."""
  rows = _rows(num_rows)
  ways = {
      'ChatTask, dialog': lambda: _chat(rows, template='dialog'),
      'ChatTask, transformers': lambda: _chat(rows, template='transformers'),
      'ChatTask, one short turn': lambda: _pairs(num_rows),
      'PackedSource, plan and rows': lambda: _packed(rows),
      'batches of Kauldron': lambda: _batches(rows),
  }
  return {name: _timed(run) for name, run in ways.items()}


def _timed(run):
  begin = time.process_time()
  tokens = run()
  return tokens, time.process_time() - begin


def _rows(number):
  pairs = list(g4.testing.EnFrPairs(split='train'))
  rng = np.random.default_rng(0)
  tool = {'name': 'look_up', 'parameters': {'type': 'object'}}
  rows = []
  for _ in range(number):
    messages = [{'role': 'system', 'content': 'Translate.'}]
    for i in rng.choice(len(pairs), 3):
      answer = f'<|channel>thought\nHm.\n<channel|>{pairs[i]["fr"]}'
      messages += [
          {'role': 'user', 'content': pairs[i]['en']},
          {'role': 'assistant', 'content': answer},
      ]
    rows.append({'messages': messages, 'tools': [tool]})
  return rows


def _task(**kwargs):
  return g4.data.ChatTask(
      layout='messages',
      in_tools='tools',
      thinking='strip',
      inline_markup='parse',
      tokenizer=g4.testing.Gemma4Tokenizer(),
      max_length=1024,
      **kwargs,
  )


def _chat(rows, **kwargs):
  task = _task(**kwargs)
  return sum(int((task.map(row)['target'] > 0).sum()) for row in rows)


def _pairs(number):
  task = g4.data.ChatTask(
      in_prompt='en',
      in_response='fr',
      tokenizer=g4.testing.Gemma4Tokenizer(),
      max_length=48,
  )
  pairs = itertools.cycle(g4.testing.EnFrPairs(split='train'))
  pairs = itertools.islice(pairs, number)
  return sum(int((task.map(pair)['target'] > 0).sum()) for pair in pairs)


def _batches(rows):
  dataset = kd.data.py.DataSource(
      data_source=rows,
      shuffle=True,
      seed=0,
      num_epochs=1,
      batch_size=16,
      num_workers=0,
      transforms=[_task()],
  )
  return sum(int((batch['target'] > 0).sum()) for batch in dataset)


def _packed(rows):
  source = g4.data.PackedSource(data_source=rows, transforms=[_task()])
  return sum(int((row['target'] > 0).sum()) for row in source)


if __name__ == '__main__':
  main()
