"""The printed table."""

from gemma import gm
import pytest

from gemma4_lora import g4
from tests import training


def test_counts_are_those_of_the_parameters():
  model = g4.nn.LoRA(rank=3, model=g4.testing.Gemma4_E2B())
  summary = g4.nn.summary(model)
  params = training.random_params(model)
  sizes = {path: x.size for path, x in training.flat(params).items()}
  assert summary.total == sum(sizes.values())
  lora = [size for path, size in sizes.items() if '.lora.' in path]
  assert summary.trainable == sum(lora)
  assert summary.num_projections == len(lora) / 2
  assert sum(group.num_params for group in summary.groups) == sum(lora)


def _attention(num_layers, width, heads, size, *kv):
  """Inputs plus outputs of q and o, and of k and v (layers, heads each)."""
  return num_layers * 2 * (width + heads * size) + sum(
      layers * (width + kv_heads * size) for layers, kv_heads in kv
  )


# Inputs plus outputs of every adapted projection, by hand; times the rank.
@pytest.mark.parametrize(
    ('cls', 'num_projections', 'sum_in_out'),
    [
        (
            gm.nn.Gemma4_E2B,
            276,
            _attention(28, 1536, 8, 256, (2 * 12, 1))
            + _attention(7, 1536, 8, 512, (2 * 3, 1))
            + 3 * (15 * (1536 + 6144) + 20 * (1536 + 12288))
            + 2 * 35 * (1536 + 256)
            + (1536 + 35 * 256),
        ),
        (
            gm.nn.Gemma4_E4B,
            343,
            _attention(35, 2560, 8, 256, (2 * 20, 2))
            + _attention(7, 2560, 8, 512, (2 * 4, 2))
            + 3 * 42 * (2560 + 10240)
            + 2 * 42 * (2560 + 256)
            + (2560 + 42 * 256),
        ),
        (
            gm.nn.Gemma4_31B,
            410,
            _attention(50, 5376, 32, 256, (2 * 50, 16))
            + _attention(10, 5376, 32, 512, (10, 4))
            + 3 * 60 * (5376 + 21504),
        ),
        (
            gm.nn.Gemma4_26B_A4B,
            205,
            _attention(25, 2816, 16, 256, (2 * 25, 8))
            + _attention(5, 2816, 16, 512, (5, 2))
            + 3 * 30 * (2816 + 2112),
        ),
    ],
)
def test_released_models_without_allocating_them(
    cls, num_projections, sum_in_out
):
  summary = g4.nn.summary(g4.nn.LoRA(rank=16, model=cls()))
  assert summary.num_projections == num_projections
  assert summary.trainable == 16 * sum_in_out


def test_the_table_as_it_is_printed():
  model = g4.nn.LoRA(
      rank=4, targets=['v', 'gate'], model=g4.testing.Gemma4_E2B()
  )
  lines = str(g4.nn.summary(model)).splitlines()
  assert lines[0].split() == [
      'projection',
      'base',
      'weight',
      'in',
      'out',
      'rank',
      'parameters',
      'layers',
  ]  # pyformat: disable
  assert lines[2].split() == [
      'v',
      'layer_*.attn.kv_einsum.w[1]',
      '32',
      '1',
      'x',
      '8',
      '4',
      '320',
      '2:',
      '0-1',
  ]  # pyformat: disable
  footer = lines[6:]  # Under two groups of v and two of gate.
  assert footer[0].startswith('9 projections, ')
  assert footer[1] == '0.0 MB in float32, and 0.0 MB of Adam state'
  assert '3 v: the model never uses them (KV-shared layers)' in footer[3]


def test_experts_count_each():
  """128 experts of 704, in 30 layers of width 2816."""
  model = g4.nn.LoRA(rank=2, targets='experts', model=gm.nn.Gemma4_26B_A4B())
  summary = g4.nn.summary(model)
  assert summary.trainable == 30 * 128 * 3 * 2 * (704 + 2816)
  assert [group.path for group in summary.groups] == [
      'layer_*.mlp.gating_einsum.w[:, 0]',
      'layer_*.mlp.gating_einsum.w[:, 1]',
      'layer_*.mlp.linear.w',
  ]


def test_renders_in_a_notebook():
  model = g4.nn.LoRA(rank=4, targets='q', model=g4.testing.Gemma4_E2B())
  html = g4.nn.summary(model)._repr_html_()
  assert '<td>layer_*.attn.q_einsum.w</td>' in html
  assert 'layer_3.attn.q_einsum.lora.q' in html  # A row opens to these.
  assert 'trainable of' in html


def test_says_what_is_left_out_and_why():
  model = g4.nn.LoRA(rank=16, model=gm.nn.Gemma4_26B_A4B())
  left_out = {str(x) for x in g4.nn.summary(model).left_out}
  assert left_out == {
      "30 router: chosen only by its own name, targets=['router']",
      '30 expert_gate, 30 expert_up, 30 expert_down: not chosen by targets=',
  }


def test_bytes_are_those_of_the_leaves():
  model = g4.nn.LoRA(rank=4, dtype='bfloat16', model=g4.testing.Gemma4_31B())
  summary = g4.nn.summary(model)
  assert summary.num_bytes == 2 * summary.trainable
  assert summary.adam_bytes == 4 * summary.trainable


def test_a_model_without_lora_is_refused():
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_E2B'):
    g4.nn.summary(g4.testing.Gemma4_E2B())
