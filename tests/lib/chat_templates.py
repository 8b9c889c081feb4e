"""Chat templates of our own, for tests of `template=PATH`.

`DIALOG` writes what `template='dialog'` writes, so that our own code is an oracle
of what its masks are.
"""

import pathlib
from typing import Any

DIALOG = """
{{- bos_token -}}
{%- macro value(x) -%}
  {%- if x is string -%}<|"|>{{ x }}<|"|>{%- else -%}{{ x | tojson }}{%- endif -%}
{%- endmacro -%}
{%- macro text(content) -%}
  {%- if content is string -%}{{ content }}
  {%- else -%}
    {%- for part in content or [] -%}
      {{ '<|image|>' if part.type == 'image' else part.text }}
    {%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- if enable_thinking | default(false) -%}
  {%- if messages[0].role != 'system' -%}
    {{ '<|turn>system\\n<|think|>\\n<turn|>\\n' }}
  {%- endif -%}
{%- endif -%}
{%- set ns = namespace(role='', calls=[], answers=0) -%}
{%- for m in messages -%}
  {%- set role = {'assistant': 'model', 'tool': 'model'}[m.role] or m.role -%}
  {%- if role != ns.role -%}
    {%- if ns.role -%}{{ '<turn|>\\n' }}{%- endif -%}
    {{ '<|turn>' + role + '\\n' }}
    {%- if role == 'system' and enable_thinking | default(false) -%}
      {{ '<|think|>\\n' }}
    {%- endif -%}
  {%- endif -%}
  {%- set ns.role = role -%}
  {%- if m.role == 'tool' -%}
    {%- if ns.answers -%}{{ '<|tool_response>' }}{%- endif -%}
    {%- set named = namespace(call=ns.calls[ns.answers]) -%}
    {%- for call in ns.calls if m.tool_call_id and call.id == m.tool_call_id -%}
      {%- set named.call = call -%}
    {%- endfor -%}
    {%- set ns.answers = ns.answers + 1 -%}
    {{- 'response:' + named.call.function.name -}}
    {{ '{value:' + value(m.content) + '}<tool_response|>' }}
  {%- else -%}
    {%- if m.reasoning -%}
      {{ '<|channel>thought\\n' + m.reasoning + '<channel|>' }}
    {%- endif -%}
    {{ text(m.content) }}
    {%- for call in m.tool_calls or [] -%}
      {{ '<|tool_call>call:' + call.function.name + '{' }}
      {%- for k, v in call.function.arguments | dictsort -%}
        {{ k + ':' + value(v) }}{{ '' if loop.last else ',' }}
      {%- endfor -%}
      {{ '}<tool_call|>' }}
    {%- endfor -%}
    {%- set ns.calls = m.tool_calls or [] -%}
    {%- set ns.answers = 0 -%}
    {%- if m.tool_calls -%}{{ '<|tool_response>' }}{%- endif -%}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
  {%- if ns.role != 'model' -%}{{ '<turn|>\\n<|turn>model\\n' }}{%- endif -%}
{%- elif not messages[-1].tool_calls and messages[-1].role != 'tool' -%}
  {{ '<turn|>\\n' }}
{%- endif -%}
"""

# The larger models': their prompt has an empty thought.
LARGE = DIALOG.replace(
    "'<turn|>\\n<|turn>model\\n'",
    "'<turn|>\\n<|turn>model\\n<|channel>thought\\n<channel|>'",
)
# Leaves thoughts out of all messages but the last.
FORGETS = DIALOG.replace(
    '{%- if m.reasoning -%}', '{%- if m.reasoning and loop.last -%}'
)


def put(folder: pathlib.Path, text: str, **kwargs: Any) -> str:
  """Writes a template into a folder, and returns the folder's path."""
  folder.mkdir(parents=True, exist_ok=True)
  name = kwargs.get('name', 'chat_template.jinja')
  (folder / name).write_text(text, encoding='utf-8')
  return str(folder)
