"""What a terminal would act upon is spelled out."""

import pytest

from gemma4_lora.host import _escapes


@pytest.mark.parametrize(
    ('text', 'want'),
    [
        ('\033[31mred\a', r'\x1b[31mred\x07'),
        ('a\rb\x9b', r'a\rb\x9b'),
        ('\u202eabc\u2028\ufeff', r'\u202eabc\u2028\ufeff'),
        ('half \ud83d', r'half \ud83d'),
        ('Où?\n\t日本 👩‍🚀 \\x1b', 'Où?\n\t日本 👩‍🚀 \\x1b'),
    ],
)
def test_escapes(text, want):
  assert _escapes.escaped(text) == want
