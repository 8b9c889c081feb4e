"""The benchmark of the data counts what it says; times depend on the load."""

from gemma4_lora import g4
from tests.benchmarks import data


def test_each_way_is_measured_and_makes_the_tokens_of_its_rows():
  measured = data.measure(16, g4.testing.Gemma4Tokenizer())
  tokens = {name: number for name, (_, number, _) in measured.items()}
  assert all(examples == 16 for examples, _, _ in measured.values())
  assert all(number > 0 for number in tokens.values())
  assert all(seconds > 0 for _, _, seconds in measured.values())
  # Padding is not counted, so packing and batching change nothing.
  whole = tokens['ChatTask, dialog']
  assert tokens['PackedSource, plan and rows'] == whole
  assert tokens['batches of Kauldron'] == whole
  assert tokens['lines of a file'] == whole
  # Layouts spell the same pairs.
  pairs = {
      n for name, n in tokens.items() if name.startswith('ChatTask, pairs')
  }
  assert len(pairs) == 1
  assert max(pairs) < whole


def test_the_table_has_a_line_for_each_way(monkeypatch, capsys):
  measured = {'one way': (50, 6000, 0.5), 'another': (1, 300, 0.1)}
  monkeypatch.setattr(data, 'measure', lambda *_: measured)
  data.main()
  _, _, *lines = capsys.readouterr().out.splitlines()
  cells = [[x.strip() for x in line.split('|')[1:-1]] for line in lines]
  assert cells == [
      ['one way', '6000', '100', '12,000'],
      ['another', '300', '10', '3,000'],
  ]
