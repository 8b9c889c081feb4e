"""One core makes tokens faster than a chip trains on them."""

from tests.benchmarks import data


def test_chat_task_makes_20_thousand_tokens_per_second():
  data.chat_rate(100)  # What is made once: the tokenizer, imports.
  assert data.chat_rate(400) > 20_000
