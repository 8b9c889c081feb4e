"""Counts what we render otherwise than Google's chat template.

```sh
uv run tests/lib/template_reference.py generated OUT --number=5000
python -m tests.lib.template_cases OUT
```
"""

import collections
import copy
import dataclasses
import json
import pathlib
import sys
from typing import Any

from gemma4_lora import g4

REVISIONS = ('2026-07', '2026-05', '2026-04')
_TASK = g4.data.ChatTask(
    layout='messages',
    tokenizer=g4.testing.Gemma4Tokenizer(),
    max_length=1 << 20,
    in_tools='tools',
    loss_on='last',
    inline_markup='parse',
    empty_answers='train',
    null_arguments='keep',
)


def task(template: str, row: Any, **kwargs: Any) -> g4.data.ChatTask:
  """Returns the task that renders a row as a template does."""
  thinks = row.get('enable_thinking', False)
  return dataclasses.replace(
      _TASK,
      template=template,
      enable_thinking=thinks,
      thinking='strip',
      **kwargs,
  )


def row_of(case: Any, revision: str) -> Any:
  """Returns a case's row, without what a revision leaves out.

  Until July 2026, that are thoughts that no call follows. We keep them: what the
  model thought before its last answer is trained. In April, it was also images
  in answers of tools, which we refuse.
  """
  row = {'tools': None} | copy.deepcopy(case['row'])
  for message in row['messages']:
    if revision != '2026-07' and not message.get('tool_calls'):
      message.pop('reasoning', None)
      message.pop('reasoning_content', None)
    if revision == '2026-04' and message['role'] == 'tool':
      content = message['content']
      if isinstance(content, list):
        message['content'] = [x for x in content if x.get('type') == 'text']
  return row


def expected(text: str) -> str:
  """Returns a template's text as we have it: without `<bos>` and the end.

  At the last `<turn|>` samplers stop: the newline after it is not trained.
  """
  text = text.removeprefix('<bos>')
  return text.removesuffix('\n') if text.endswith('<turn|>\n') else text


def _count(cases: Any, revision: str) -> collections.Counter[str]:
  counts = collections.Counter()
  for case in cases:
    row, text = row_of(case, revision), case['texts'][revision]
    chat = task(f'transformers-{revision}', row)
    try:
      ours = chat.render(row).text
    except ValueError as e:
      counts['both raise' if text is None else 'we raise'] += 1
      if text is not None:
        print(f'{case["name"]}: {e}')
      continue
    if text is None:
      counts['the template raises'] += 1
    elif ours == expected(text):
      counts['equal'] += 1
      counts[_prompts(case, row, revision)] += 1
    else:
      counts['different'] += 1
      if counts['different'] < 4:
        print(f'{case["name"]}\n  {ours!r}\n  {expected(text)!r}')
  return counts


def _prompts(case: Any, row: Any, revision: str) -> str:
  """Returns whether the prompts of the last turn are the template's."""
  template = f'transformers-{revision}'
  prompts = [(case['prompts'][revision], task(template, row))]
  if not row['enable_thinking']:
    prompts.append(
        (
            case['prompts'][f'{revision}-large'],
            dataclasses.replace(task(template, row), thinking='empty'),
        )
    )
  for prompt, chat in prompts:
    ours = chat.render(row).prompt
    if ours != prompt.removeprefix('<bos>'):
      print(f'{case["name"]}\n  {ours!r}\n  {prompt!r}')
      return 'prompt different'
  return 'prompts equal'


def _count_file(
    cases: Any, out: pathlib.Path, revision: str, thinking: str, **kwargs: Any
) -> collections.Counter[str]:
  """Counts where `template=PATH` and our own code differ, masks included."""
  counts = collections.Counter()
  path = str(out / revision)
  name = f'transformers-{revision.removesuffix("-large")}'
  ours = 'empty' if revision.endswith('-large') else thinking
  for case in cases:
    row = row_of(case, revision.removesuffix('-large'))
    if ours == 'empty' and row['enable_thinking']:
      continue
    tasks = [
        dataclasses.replace(task(name, row), thinking=ours, **kwargs),
        dataclasses.replace(task(path, row), thinking=thinking, **kwargs),
    ]
    rendered = []
    for chat in tasks:
      try:
        rendered.append(chat.render(row))
      except ValueError as e:
        rendered.append(e)
    wanted, got = rendered
    both = isinstance(wanted, ValueError) and isinstance(got, ValueError)
    if both or got == wanted:
      counts['both raise' if both else 'equal'] += 1
      continue
    counts['different'] += 1
    if counts['different'] < 4:
      print(f'{case["name"]}\n  {wanted!r}\n  {got!r}')
  return counts


def main(out: pathlib.Path) -> int:
  cases = json.loads((out / 'cases.json').read_text(encoding='utf-8'))
  bad = 0
  for revision in REVISIONS:
    counts = _count(cases, revision)
    print(f'{revision}: {dict(sorted(counts.items()))}')
    bad += counts['different'] + counts['we raise'] + counts['prompt different']
    bad += counts['the template raises']
  for revision, thinking, loss_on in (
      ('2026-07', 'strip', 'last'),
      ('2026-07', 'strip_all', 'all'),
      ('2026-07-large', 'strip_all', 'last'),
      ('2026-05', 'strip_all', 'all'),
  ):
    counts = _count_file(cases, out, revision, thinking, loss_on=loss_on)
    print(f'the file of {revision}, {thinking}, {loss_on}: {dict(counts)}')
    bad += counts['different']
  return int(bad > 0)


if __name__ == '__main__':
  sys.exit(main(pathlib.Path(sys.argv[1])))
