# /// script
# requires-python = ">=3.12"
# dependencies = ["jinja2==3.1.6"]
# ///
"""Counts conversations that a chat template renders as Google's of July 2026.

A template is a Jinja file, or a text in a Python file, with a colon before its
name. The file is read, not imported.

```sh
uv run tests/lib/other_templates.py axolotl/gemma4.jinja
uv run tests/lib/other_templates.py unsloth/chat_templates.py:gemma4_template
```
"""

import ast
import json
import pathlib
import sys

from jinja2 import sandbox

_CASES = pathlib.Path(__file__).parents[1] / (
    'testdata/transformers_template.json'
)


def _template(place: str) -> str:
  path, _, name = place.partition(':')
  text = pathlib.Path(path).read_text(encoding='utf-8')
  if not name:
    return text
  (found,) = [
      ast.literal_eval(node.value)
      for node in ast.parse(text).body
      if isinstance(node, ast.Assign)
      and isinstance(node.targets[0], ast.Name)
      and node.targets[0].id == name
  ]
  return found


def _environment() -> sandbox.ImmutableSandboxedEnvironment:
  """Returns what transformers renders templates in."""
  environment = sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True,
      lstrip_blocks=True,
      extensions=['jinja2.ext.loopcontrols'],
  )
  environment.filters['tojson'] = lambda x, **_: json.dumps(
      x, ensure_ascii=False
  )

  def raise_exception(message):
    raise ValueError(message)

  environment.globals['raise_exception'] = raise_exception
  return environment


def _rendered(template, row) -> str | None:
  try:
    text = template.render(
        messages=row['messages'],
        tools=row.get('tools'),
        enable_thinking=row.get('enable_thinking', False),
        bos_token='<bos>',
    )
  except Exception:  # pylint: disable=broad-exception-caught
    return None  # As in the test data, if Google's raises.
  return text.removeprefix('<bos>')  # Some leave it to the tokenizer.


def main() -> None:
  cases = json.loads(_CASES.read_text(encoding='utf-8'))
  for place in sys.argv[1:]:
    template = _environment().from_string(_template(place))
    equal = 0
    for case in cases:
      google = case['texts']['2026-07']
      google = google and google.removeprefix('<bos>')
      equal += _rendered(template, case['row']) == google
    print(f'{equal} of {len(cases)}: {place}')


if __name__ == '__main__':
  main()
