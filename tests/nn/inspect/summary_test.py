"""The printed table."""

from gemma import gm
from gemma import peft
import jax
import pytest

from gemma4_lora import g4
from tests.lib import models
from tests.lib import random_params
from tests.lib import training


def test_counts_are_those_of_the_parameters():
  model = g4.nn.LoRA(rank=3, model=g4.testing.Gemma4_E2B())
  summary = g4.nn.summary(model)
  params = random_params.make(model)
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
  model = g4.nn.LoRA(rank=16, model=cls())
  assert sum(len(x.row.hf_names) for x in model.adapted) == num_projections
  assert sum(x.num_params for x in model.adapted) == 16 * sum_in_out


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
  """6 experts of 20, in 6 layers of width 40."""
  model = g4.nn.LoRA(
      rank=2, targets='experts', model=g4.testing.Gemma4_26B_A4B()
  )
  summary = g4.nn.summary(model)
  assert summary.trainable == 6 * 6 * 3 * 2 * (20 + 40)
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
  model = g4.nn.LoRA(rank=16, model=g4.testing.Gemma4_26B_A4B())
  left_out = {str(x) for x in g4.nn.summary(model).left_out}
  assert left_out == {
      "6 router: chosen only by its own name, targets=['router']",
      '6 expert_gate, 6 expert_up, 6 expert_down: not chosen by targets=',
  }


def test_bytes_are_those_of_the_leaves():
  model = g4.nn.LoRA(rank=4, dtype='bfloat16', model=g4.testing.Gemma4_31B())
  summary = g4.nn.summary(model)
  assert summary.num_bytes == 2 * summary.trainable
  assert summary.adam_bytes == 4 * summary.trainable


def _rows(model):
  lines = str(g4.nn.summary(model)).split('\n\n')[1].splitlines()
  return {line[:16].strip(): line[16:].split() for line in lines[2:-1]}, lines


def test_how_a_quantized_base_is_held():
  """Entries by hand; bits of codes, and of scales: 16 for 32 of them."""
  model = g4.nn.LoRA(
      rank=16,
      targets='q',
      quantize=[
          g4.quant.Int8('per_layer_embeddings'),
          g4.quant.NF4('mlp', double=True),
          'int4',
      ],
      model=gm.nn.Gemma4_E2B(),
  )
  rows, lines = _rows(model)
  table = 262144 * 35 * 256
  assert rows['per-layer tables'][:2] == [f'{table:,}', '8.12']
  mlp = 3 * 1536 * (15 * 6144 + 20 * 12288)
  assert rows['mlp'] == [
      *(f'{mlp:,}', '4.15', '0.81', 'GB'),
      *('nf4,', 'groups', 'of', '64,', 'int8', 'scales'),
  ]
  assert rows['embeddings'][:2] == [f'{262144 * 1536:,}', '4.5']
  assert rows['attention'][1:] == '4.5 0.17 GB int4, groups of 32'.split()
  assert rows['norms'][1] == '16' and rows['norms'][-1] == 'bfloat16'
  assert lines[-1] == 'base: 3.61 GB, 38.9% of 9.29 GB in bfloat16'


def test_a_quantized_base_is_counted_as_it_was():
  base = g4.testing.Gemma4_E2B()
  quantize = g4.quant.Int4(group_size=2)
  summary = g4.nn.summary(g4.nn.LoRA(rank=3, quantize=quantize, model=base))
  num = sum(part.num_params for part in summary.base)
  assert num == summary.total - summary.trainable
  plain = g4.nn.summary(g4.nn.LoRA(rank=3, model=base))
  assert (plain.total, plain.trainable) == (summary.total, summary.trainable)
  assert not plain.base


def test_bits_of_a_quantized_base_are_those_of_its_arrays():
  """Of two formats in one group, and in a notebook."""
  model = g4.nn.LoRA(
      rank=2,
      quantize=[
          g4.quant.NF4(['q', 'k', 'v'], group_size=2),
          g4.quant.Int4(group_size=2),
      ],
      model=models.base('Gemma4_26B_A4B'),
  )
  summary = g4.nn.summary(model)
  params = random_params.make(model)
  base = jax.tree.leaves(peft.split_params(params).original)
  bits = sum(x.size * jax.dtypes.itemsize_bits(x.dtype) for x in base)
  assert sum(part.num_bits for part in summary.base) == bits
  parts = {part.name: part for part in summary.base}
  assert set(parts) >= {'attention', 'experts', 'mlp', 'router', 'embeddings'}
  assert parts['attention'].formats == (
      'int4, groups of 2',
      'nf4, groups of 2',
  )
  assert '<td>int4, groups of 2; nf4, groups of 2</td>' in (
      summary._repr_html_()
  )


def test_a_model_without_lora_is_refused():
  with pytest.raises(ValueError, match='takes a g4.nn.LoRA. Got: Gemma4_E2B'):
    g4.nn.summary(g4.testing.Gemma4_E2B())
