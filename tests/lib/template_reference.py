# /// script
# requires-python = ">=3.11"
# dependencies = ["trl==1.16.0", "transformers==5.24.0", "jinja2==3.1.6"]
#
# [tool.uv]
# # We read files of trl, and import nothing.
# override-dependencies = [
#   "accelerate; python_version < '0'",
#   "datasets; python_version < '0'",
# ]
# ///
"""Google's own chat templates, in an environment of their own.

```sh
uv run tests/lib/template_reference.py generated OUT --number=5000
python -m tests.lib.template_cases OUT  # Counts what we render otherwise.
uv run tests/lib/template_reference.py testdata OUT
```

`generated` writes rows by chance, with what each revision of the template makes
of them, and the template files, which are not ours to commit. `testdata` renders
the rows of `tests/testdata/transformers_template.json` again. The files are those
that trl ships, by their SHA-256, and transformers renders them.
"""

import argparse
import hashlib
import importlib.util
import json
import pathlib

import template_rows
from transformers.utils import chat_template_utils

_TESTDATA = pathlib.Path(__file__).parents[1] / 'testdata'
# The file in trl, and the SHA-256 of it and of the one for the larger models.
_REVISIONS = {
    '2026-07': ('gemma4_v5.jinja', '0a2c8073', 'ae53464b'),
    '2026-05': ('gemma4_v4.jinja', '2f1b4d75', '36e3a42e'),
    '2026-04': ('gemma4.jinja', '33204f1a', '94899c0f'),
}
_PROMPT = "{{- '<|turn>model\\n' -}}\n"
_OPENED = "'<|turn>' + role + '\\n' }}\n"


def _templates() -> dict[str, str]:
  """Returns all templates by name: `2026-07`, `2026-07-large`, ..."""
  (root,) = importlib.util.find_spec('trl').submodule_search_locations
  texts = {}
  for name, (file, edge, large) in _REVISIONS.items():
    path = pathlib.Path(root, 'chat_templates', file)
    text = path.read_text(encoding='utf-8')
    assert _sha256(text).startswith(edge), f'{path} is another file.'
    texts[name] = text
    for edited in _larger(text):
      if _sha256(edited).startswith(large):
        texts[f'{name}-large'] = edited
    assert f'{name}-large' in texts, f'No edit of {path} is {large}…'
  return texts


def _larger(text: str) -> list[str]:
  """Returns what may be the larger models' file: one more lines of a prompt."""
  indent = ' ' * 8
  found = []
  for condition in (
      'not enable_thinking',
      'not enable_thinking | default(false)',
  ):
    thought = (
        f'{indent}{{%- if {condition} -%}}\n'
        f"{indent}    {{{{- '<|channel>thought\\n<channel|>' -}}}}\n"
        f'{indent}{{%- endif -%}}\n'
    )
    more = text.replace(_PROMPT, _PROMPT + thought)
    found += [more, more.replace(_OPENED, _OPENED + '\n')]
  return found


def _sha256(text: str) -> str:
  return hashlib.sha256(text.encode()).hexdigest()


def _rendered(row, templates) -> dict[str, dict[str, str]]:
  """Returns the whole text and the last turn's prompt; None where it raises."""
  messages = row['messages']
  models = [i for i, m in enumerate(messages) if m['role'] == 'assistant']
  others = [i for i, m in enumerate(messages) if m['role'] in _OTHERS]
  last = models[-1] if models else 0
  begin = max((i for i in others if i < last), default=-1) + 1
  texts = {name: _render(row, text) for name, text in templates.items()}
  for name in _REVISIONS:
    assert texts[name] == texts[f'{name}-large']  # They differ in prompts.
  prompt = row | {'messages': messages[:begin]}
  return {
      'texts': texts,
      'prompts': {
          name: _render(prompt, text, add_generation_prompt=True)
          for name, text in templates.items()
      },
  }


_OTHERS = ('system', 'developer', 'user')


def _shorten(case) -> None:
  """Leaves out texts that the next revision has as well."""
  texts, revisions = case['texts'], list(_REVISIONS)
  case['texts'] = {
      name: texts[name]
      for i, name in enumerate(revisions)
      if not i or texts[name] != texts[revisions[i - 1]]
  }
  newest = (revisions[0], f'{revisions[0]}-large')
  case['prompts'] = {name: case['prompts'][name] for name in newest}


def _render(row, template, **kwargs):
  compiled = chat_template_utils._compile_jinja_template(template)  # pylint: disable=protected-access
  try:
    return compiled.render(
        messages=row['messages'],
        tools=row.get('tools'),
        enable_thinking=row.get('enable_thinking', False),
        bos_token='<bos>',
        **kwargs,
    )
  except Exception as e:  # pylint: disable=broad-exception-caught
    print(f'{type(e).__name__}: {e}'[:200])
    return None


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('what', choices=['generated', 'testdata'])
  parser.add_argument('out', type=pathlib.Path)
  parser.add_argument('--number', type=int, default=5000)
  parser.add_argument('--seed', type=int, default=0)
  args = parser.parse_args()
  templates = _templates()
  if args.what == 'generated':
    rows = template_rows.rows(args.number, seed=args.seed)
    cases = [{'name': str(i), 'row': row} for i, row in enumerate(rows)]
    name = 'cases.json'
  else:
    name = 'transformers_template.json'
    cases = json.loads((_TESTDATA / name).read_text(encoding='utf-8'))
  for case in cases:
    case |= _rendered(case['row'], templates)
    if args.what == 'testdata':
      _shorten(case)
  args.out.mkdir(parents=True, exist_ok=True)
  (args.out / name).write_text(
      json.dumps(cases, indent=1, ensure_ascii=False), encoding='utf-8'
  )
  for name, text in templates.items():
    folder = args.out / name
    folder.mkdir(exist_ok=True)
    (folder / 'chat_template.jinja').write_text(text, encoding='utf-8')


if __name__ == '__main__':
  main()
