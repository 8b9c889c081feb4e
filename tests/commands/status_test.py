"""What a slow command is doing."""

import io

from gemma4_lora.commands import _status


class _Terminal(io.StringIO):

  def isatty(self):
    return True


def _said(stream):
  with _status.Status('gemma4_lora check', stream) as status:
    status.say('reads the base')
    status.say('looks at it')
  return stream.getvalue()


def test_in_a_log_it_is_lines():
  assert _said(io.StringIO()).splitlines() == [
      'gemma4_lora check: reads the base …',
      'gemma4_lora check: looks at it …',
  ]


def test_in_a_terminal_one_line_is_replaced_and_none_is_left():
  said = _said(_Terminal())
  assert '\n' not in said
  *_, last, nothing = said.split('\r\x1b[K')
  assert (last, nothing) == ('gemma4_lora check: looks at it …', '')
