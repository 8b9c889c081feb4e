"""Expressions of files: what `re` says, in bounded time."""

import itertools
import random
import re
import time

import pytest

from gemma4_lora.peft import _linear_regex

_Q = 'model.language_model.layers.3.self_attn.q_proj'
# As in real folders: those of Unsloth, of guides, of `save_peft`.
_REAL = [
    r'.*\.self_attn\.(q|v)_proj',
    r'(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?'
    r'(?:k_proj|v_proj|q_proj|out_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.'
    r'(?:self_attn|mlp)\.(?:(?:q_proj|k_proj)))',
    r'^(?!.*(vision|audio)).*(q_proj|v_proj)$',
    r'^(?!.*(language_model)).*(q_proj|v_proj)$',
    r'model\.language_model\.layers\.(0|2|3)\.self_attn\.(q_proj|k_proj)',
    r'.*layers\.(?:[0-9]|1[0-5])\..*_proj',
    r'(?i).*Q_PROJ',
    r'.*(?<!vision_tower)\.layers\.\d+\.self_attn\.[qkv]_proj',
    r'(?=.*self_attn).*proj',
    r'.*[^k]_proj\Z',
    r'\A.*\Bproj',
    '',
]


@pytest.mark.parametrize('pattern', _REAL)
def test_expressions_of_real_folders(pattern):
  expressions = _linear_regex.Expressions()
  names = [
      _Q,
      _Q.replace('q_', 'k_'),
      _Q.replace('3', '12'),
      'model.vision_tower.layers.3.self_attn.v_proj',
      'model.layers.10.mlp.up_proj',
      'lm_head',
      '',
  ]
  for name in names:
    want = re.fullmatch(pattern, name) is not None
    assert expressions.fits(pattern, name) == want, name


def test_the_answers_are_those_of_re():
  """On expressions that are put together by chance."""
  rng = random.Random(0)
  atoms = [
      'a',
      'b',
      '.',
      '[ab]',
      '[^a]',
      r'\w',
      r'\d',
      r'\.',
      'a|b',
      '^',
      '$',
      r'\b',
      r'\B',
      '(?=a)',
      '(?!b)',
      '(?<=a)',
      '(?<!ab)',
      '(?i:B)',
      '1',
  ]
  ends = ['', '', '*', '+', '?', '{2}', '{1,3}', '*?', '+?']
  texts = [
      ''.join(x) for n in range(5) for x in itertools.product('ab.', repeat=n)
  ]
  texts += ['a1', 'B', 'aB', 'a\n', '\n', 'ab\n']

  def made(depth):
    parts = []
    for _ in range(rng.randint(1, 3)):
      part = rng.choice(atoms)
      if depth and rng.random() < 0.4:
        part = f'(?:{made(depth - 1)})'
      parts.append(f'(?:{part}){rng.choice(ends)}')
    return rng.choice(['', '|']).join(parts)

  count = 0
  for _ in range(300):
    pattern = made(2)
    compiled = re.compile(pattern)
    expressions = _linear_regex.Expressions()
    for text in rng.sample(texts, 20):
      want = compiled.fullmatch(text) is not None
      assert expressions.fits(pattern, text) == want, (pattern, text)
      count += want
  assert count > 500


@pytest.mark.parametrize(
    'pattern',
    [
        '(.*)*x',
        '(a*)*(a*)*(a*)*b',
        '(.+)+(.+)+x',
        '(?=(.*)*x).*',
        '(.*.*.*.*.*.*)*x',
        '(a|a)(b|b)' * 40 + 'c',
        r'(?!(.*)*x)(.*)*y',
    ],
)
def test_what_would_take_re_forever_takes_no_time(pattern):
  start = time.process_time()
  expressions = _linear_regex.Expressions()
  assert not expressions.fits(pattern, 'ab' * 40)
  assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ('pattern', 'match'),
    [
        ('(', 'no regular expression'),
        ('(' * 5000 + ')' * 5000, 'no regular expression'),
        ('a{99999999999999}', 'no regular expression'),
        ('((a{999}){999}){999}', 'too large'),
        (r'(a)\1', 'groupref'),
        ('(?>a*)b', 'atomic'),
        ('a*+b', 'possessive'),
    ],
)
def test_what_cannot_be_matched_in_bounded_time_is_an_error(pattern, match):
  with pytest.raises(ValueError, match=match):
    _linear_regex.Expressions().add(pattern)


def test_work_is_bounded(monkeypatch):
  monkeypatch.setattr(_linear_regex, '_MOST_WORK', 10**4)
  expressions = _linear_regex.Expressions()
  with pytest.raises(ValueError, match='too long'):
    for i in range(1000):
      expressions.fits('(?=.*(?=.*(?=.*a)))(.*)*x', f'{i}' * 20)
