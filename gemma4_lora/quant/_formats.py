"""The table of formats, and the names that users write for them."""

from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from gemma4_lora.quant import _format
from gemma4_lora.quant import _int4
from gemma4_lora.quant import _int8
from gemma4_lora.quant import _nf4

# One line per format.
FORMATS: tuple[type[_format.Format], ...] = (
    _int8.Int8,
    _int4.Int4,
    _nf4.NF4,
)

_Formats = Mapping[Any, type[_format.Format]]


def by_name(formats: Iterable[type[_format.Format]] = FORMATS) -> _Formats:
  """Returns the formats by the name that a user may write.

  Raises:
    ValueError: Two have one name.
  """
  found: dict[str, type[_format.Format]] = {}
  for cls in formats:
    other = found.setdefault(cls.kind, cls)
    if other is not cls:
      raise ValueError(f'Two formats have kind {cls.kind!r}: {other}, {cls}.')
  return found


def by_codes(
    formats: Iterable[type[_format.Format]] = FORMATS, *, stored: bool = False
) -> _Formats:
  """Returns the formats by name and dtype of their codes.

  Args:
    formats: Classes of formats.
    stored: Whether to take the dtype in files.

  Raises:
    ValueError: Codes of two formats have the same name and dtype, or a name
      does not end as codes' names do.
  """
  found: dict[Any, type[_format.Format]] = {}
  for cls in formats:
    if not _format.is_codes(cls.codes_name):
      raise ValueError(
          f'{cls.__name__}: codes_name should end in "_codes". Got:'
          f' {cls.codes_name!r}'
      )
    dtype = stored and cls.stored_dtype or cls.codes_dtype
    other = found.setdefault((cls.codes_name, jnp.dtype(dtype)), cls)
    if other is not cls:
      raise ValueError(
          f'{other.__name__} and {cls.__name__} both have {cls.codes_name!r} of'
          f' dtype {jnp.dtype(dtype)}{" in files" * stored}: nothing would tell'
          f' them apart. Give {cls.__name__} a codes_name of its own, such as'
          f' {f"{cls.kind}_codes"!r}.'
      )
  return found


_BY_NAME = by_name()
_BY_CODES = by_codes()
_BY_STORED_CODES = by_codes(stored=True)


def named(name: Any) -> type[_format.Format] | None:
  """Returns the format of a name, `'int4'`; None if there is none."""
  return _BY_NAME.get(name) if isinstance(name, str) else None


def held_dtype(name: str, dtype: Any) -> Any:
  """Returns the dtype in memory of an array of a file.

  Args:
    name: Its key in the tree.
    dtype: Its dtype in the file.
  """
  cls = _BY_STORED_CODES.get((name, jnp.dtype(dtype)))
  return dtype if cls is None else jnp.dtype(cls.codes_dtype)


def of_codes(name: str, dtype: Any) -> type[_format.Format] | None:
  """Returns the format whose codes have a name and a dtype; None if none has."""
  return _BY_CODES.get((name, jnp.dtype(dtype)))


def format_of(value: Mapping[str, Any]) -> type[_format.Format]:
  """Returns the format of a quantised array.

  Args:
    value: A quantised array; of arrays or `jax.ShapeDtypeStruct`s.

  Raises:
    ValueError: The format is unknown.
  """
  codes = {k: x.dtype for k, x in value.items() if _format.is_codes(k)}
  cls = of_codes(*next(iter(codes.items()))) if len(codes) == 1 else None
  if cls is None:
    got = ' and '.join(f'{key!r} of dtype {x}' for key, x in codes.items())
    known = ', '.join(
        f'{x.kind} ({x.codes_name!r} of dtype {jnp.dtype(x.codes_dtype)})'
        for x in FORMATS
    )
    raise ValueError(f'{got}: no format of g4.quant. It knows {known}.')
  return cls


def normalize(quantize: Any) -> tuple[_format.Format, ...]:
  """Returns formats from what a user wrote: hashable, and fit for JSON.

  Args:
    quantize: None, a format or the name of one, or several.

  Raises:
    ValueError: Anything else, or an empty list.
  """
  if quantize is None:
    return ()
  if not isinstance(quantize, (list, tuple)):
    quantize = [quantize]
  names = ', '.join(map(repr, _BY_NAME))
  if not quantize:
    raise ValueError(
        f'{_format.ARGUMENT}=[] quantises nothing. Leave it out for a base that'
        f' is as released, or name a format: {names}.'
    )
  formats = []
  for value in quantize:
    if (cls := named(value)) is not None:
      value = cls()
    if not isinstance(value, _format.Format):
      raise ValueError(
          f'{_format.ARGUMENT}= takes {names}, or formats, as'
          f' {_format.ARGUMENT}=[g4.quant.Int8("embeddings"),'
          f' g4.quant.Int4(group_size=64)]. Got: {value!r}'
      )
    formats.append(value)
  return tuple(formats)
