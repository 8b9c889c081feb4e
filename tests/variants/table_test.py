"""The table of LoRA variants."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from gemma4_lora import g4
from gemma4_lora import variants
from gemma4_lora.gemma4 import _linears
from gemma4_lora.variants import _table

_SCALED = dataclasses.replace(
    variants.PLAIN, name='Scaled', argument='use_scale'
)


@pytest.mark.parametrize('variant', _table.ALL, ids=lambda x: x.name)
def test_arguments_choose_their_variant(variant):
  """And g4.nn.LoRA has them all, off by default."""
  arguments = variants.arguments(variant)
  assert variants.chosen(arguments) is variant
  fields = {f.name: f.default for f in dataclasses.fields(g4.nn.LoRA)}
  assert {fields[name] for name in arguments} == {False}
  model = g4.nn.LoRA(rank=2, model=g4.testing.Gemma4_31B(), **arguments)
  assert model.variant is variant
  assert {x.variant for x in model.adapted} == {variant}


def test_nothing_chosen_is_plain_lora():
  assert variants.chosen({}) is variants.PLAIN
  assert variants.chosen({'use_dora': None, 'r': 8}) is variants.PLAIN


def test_two_variants_at_once_are_refused(monkeypatch):
  monkeypatch.setattr(_table, 'ALL', (*_table.ALL, _SCALED))
  with pytest.raises(ValueError, match='use_dora=True and use_scale=True excl'):
    variants.chosen({'use_dora': True, 'use_scale': True})


def test_a_leaf_has_one_owner():
  """Its name alone says what it is: in parameters, and in PEFT's files."""
  own = [leaf for _, leaf in variants.owners()]
  leaves = [variants.A, variants.B, *own]
  names = [leaf.name for leaf in leaves]
  assert len(set(names)) == len(names)
  assert 'w' not in names  # What `modules_to_save` trains of a linear.
  ends = [end for leaf in leaves for end in leaf.peft]
  assert len(set(ends)) == len(ends)
  assert [variants.owner(x.name)[1] for x in own] == own
  assert variants.owner('a') is variants.owner('w') is None
  assert not variants.from_base('b')


@pytest.mark.parametrize('variant', _table.ALL, ids=lambda x: x.name)
@pytest.mark.parametrize('name', ['Gemma4_E2B', 'Gemma4_26B_A4B'])
def test_leaves_start_in_their_shapes(variant, name):
  rows = _linears.linears(getattr(g4.testing, name).config)
  for row in rows:
    if row.group == 'experts' and not variant.is_branch_alone:
      continue
    for leaf in variant.own:
      weight = jax.ShapeDtypeStruct(row.shape, jnp.bfloat16)
      start = jax.eval_shape(functools.partial(leaf.start, row=row), weight)
      assert start.shape == leaf.shape(row, 3)
      assert start.dtype == jnp.float32
