"""How two fingerprints differ, in the words of a config's arguments."""

from collections.abc import Collection
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any

from absl import logging
import numpy as np

from gemma4_lora import variants
from gemma4_lora.nn.branches import _init

Fingerprint = Mapping[str, Any]

NONE = '(none)'
QUANTIZE = 'quantize'
_SHOWN = 4


def specs(leaves: Mapping[str, Any]) -> dict[str, Any]:
  """Returns dtype and shape of each leaf, as a fingerprint has them."""
  return {
      name: [str(np.dtype(x.dtype)), list(x.shape)]
      for name, x in leaves.items()
  }


def different_lora(saved: Fingerprint, current: Fingerprint) -> Iterator[str]:
  """Yields differences of targets, ranks, alphas, settings and leaves."""
  old, new = saved['projections'], current['projections']
  yield from _different_names('targets=', old, new)
  both = [name for name in old if name in new]
  for field in ('rank', 'alpha'):
    names = [x for x in both if old[x][field] != new[x][field]]
    if names:
      first = names[0]
      yield (
          f'{field}= of {_some(names)}: checkpoint {old[first][field]:g}, config'
          f' {new[first][field]:g}'
      )
  old_settings, new_settings = _with_variant(saved), _with_variant(current)
  for field in sorted({*old_settings, *new_settings}):
    a = old_settings.get(field, NONE)
    b = new_settings.get(field, NONE)
    if a != b:
      yield f'{field}=: checkpoint {a!r}, config {b!r}'
  if old == new or not (old and new):
    yield from different_leaves('LoRA', saved['leaves'], current['leaves'])


def _with_variant(lora: Mapping[str, Any]) -> Mapping[str, Any]:
  """Returns the settings; variants that are newer than the file are off."""
  settings = lora['settings']
  return variants.arguments(variants.PLAIN) | settings if settings else settings


def different_formats(
    saved: Fingerprint, ours: Mapping[str, Any]
) -> Iterator[str]:
  """Yields arrays that the two bases quantise differently."""
  old = saved['base']['leaves']

  def formats(leaves, others):
    """The dtype of each array, or of its codes, for arrays that both have."""
    found = {}
    for name, (dtype, _) in leaves.items():
      array = name.removesuffix('.codes')
      if array != name or f'{name}.codes' in others:
        found[array] = f'{dtype} codes' if array != name else dtype
    return {k: x for k, x in found.items() if _has(others, k)}

  mine = specs(ours)
  a, b = formats(old, mine), formats(mine, old)
  names = [k for k in a if a[k] != b.get(k, a[k])]
  if names:
    first = names[0]
    quantize = saved['lora']['settings'].get(QUANTIZE, NONE)
    yield (
        f'quantize= (trained on {quantize}), at {_some(names)}: trained on'
        f' {a[first]}, parameters {b[first]}'
    )


def _has(leaves: Collection[str], array: str) -> bool:
  return array in leaves or f'{array}.codes' in leaves


def different_base(saved: Fingerprint, current: Fingerprint) -> Iterator[str]:
  """Yields differences of the base's names, shapes and dtypes."""
  yield from different_leaves(
      'the base (model=)', saved['leaves'], current['leaves']
  )


def different_values(saved: Fingerprint, current: Fingerprint) -> Iterator[str]:
  """Yields a difference of the base's checksums, where both have them."""
  old = saved['base'].get('checksums', {})
  new = current['base'].get('checksums', {})
  names = [k for k in old if k in new and old[k] != new[k]]
  if not names:
    return
  first = names[0]
  yield (
      f'values of the base (init_transform=): {len(names)} of {len(old)}'
      f' leaves, first {first}: checkpoint {old[first]}, config {new[first]}'
      ' (checksums). Give init_transform= the checkpoint that this run started'
      ' from; without one, the seed= that it had'
  )
  init = saved['lora']['settings'].get('init_lora_weights', 'default')
  if _init.is_from_base(init):
    yield (
        f'init_lora_weights={init!r} computes the base from the released one:'
        ' another kind of machine, or version of jax, may round otherwise'
    )


def different_leaves(
    what: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[str]:
  """Yields differences of names, and of the shape or dtype of a name."""
  yield from _different_names(f'leaves of {what}', old, new)
  names = [k for k in old if k in new and list(old[k]) != list(new[k])]
  if names:
    first = names[0]
    yield (
        f'shape or dtype of {what}, at {_some(names)}: checkpoint'
        f' {_spec(old[first])}, config {_spec(new[first])}'
    )


def _different_names(
    what: str, old: Mapping[str, Any], new: Mapping[str, Any]
) -> Iterator[str]:
  gone = [k for k in old if k not in new]
  come = [k for k in new if k not in old]
  if gone or come:
    yield (
        f'{what}: only in the checkpoint {_some(gone)}; only in the config'
        f' {_some(come)}'
    )


def _some(names: Sequence[str]) -> str:
  if not names:
    return NONE
  more = len(names) - _SHOWN
  shown = ', '.join(names[:_SHOWN])
  return f'{shown} and {more} more' if more > 0 else shown


def _spec(spec: Sequence[Any]) -> str:
  dtype, shape = spec
  return f'{dtype}{list(shape)}'


def log_harmless(saved: Fingerprint, current: Fingerprint, *, who: str) -> None:
  """Logs other rates of dropout, and other versions of packages."""
  old, new = saved['lora']['projections'], current['lora']['projections']
  names = [k for k in old if old[k]['dropout'] != new[k]['dropout']]
  if names:
    logging.warning(
        '%s: dropout= of %s was %g and is %g now.',
        who,
        _some(names),
        old[names[0]]['dropout'],
        new[names[0]]['dropout'],
    )
  for name, version in saved.get('versions', {}).items():
    now = current['versions'].get(name, NONE)
    if now != version:
      logging.info(
          '%s: saved with %s %s, and %s is here.', who, name, version, now
      )
