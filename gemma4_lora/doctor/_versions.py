"""Compares installed versions with the bounds of this package."""

from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from importlib import metadata
import pathlib
import re
import sys
import tomllib

from packaging import requirements
from packaging import specifiers
from packaging import version as version_lib

from gemma4_lora.doctor import _finding

_NAME = 'gemma4_lora'
# Plugins of jax: each has jax's version, or jax does not load it.
_PLUGINS = re.compile(r'jax-(cuda|rocm)\d+-(plugin|pjrt)')


def installed() -> dict[str, str]:
  """Returns versions by normalised name, without importing anything."""
  found = {}
  for distribution in metadata.distributions():
    name = distribution.metadata['Name']
    if name:  # A package that is half removed has none.
      # Python imports the first one on the path.
      found.setdefault(_normal(name), distribution.version)
  return found


def bounds() -> tuple[str, list[str]]:
  """Returns `requires-python`, and the requirements without extras.

  From the package's metadata, or from `pyproject.toml` in a clone.
  """
  file = pathlib.Path(__file__).parents[2] / 'pyproject.toml'
  if file.exists():
    project = tomllib.loads(file.read_text(encoding='utf-8'))['project']
    return project['requires-python'], project['dependencies']
  found = metadata.metadata(_NAME)
  return found['Requires-Python'], metadata.requires(_NAME) or []


def check(
    versions: Mapping[str, str],
    requires: Sequence[str],
    *,
    requires_python: str,
    python: str | None = None,
) -> Iterator[_finding.Finding]:
  """Yields a finding for Python, each requirement and each plugin of jax.

  Args:
    versions: See `installed`.
    requires: Requirements, with bounds.
    requires_python: Bounds of Python.
    python: Version of Python; default: the running one.
  """
  python = python or '.'.join(map(str, sys.version_info[:3]))
  inside = specifiers.SpecifierSet(requires_python).contains(python)
  yield _finding.Finding(
      subject='Python',
      says=f'{python}, of {requires_python}',
      fix=''
      if inside
      else f'Type: {_finding.BRING_PYTHON}, then install gemma4_lora',
  )
  for text in requires:
    requirement = requirements.Requirement(text)
    if requirement.marker and not requirement.marker.evaluate({'extra': ''}):
      continue
    yield _one(requirement, versions)
  yield from _plugins(versions)
  yield from _protobuf(versions)
  yield from _tensorflow(versions)


def _one(
    requirement: requirements.Requirement, versions: Mapping[str, str]
) -> _finding.Finding:
  name, specifier = requirement.name, requirement.specifier
  version = versions.get(_normal(name))
  install = f'Type: pip install "{name}{specifier}"'
  if version is None:
    return _finding.Finding(
        subject=name, says=f'not installed, of {specifier}', fix=install
    )
  inside = specifier.contains(version, prereleases=True)
  return _finding.Finding(
      subject=name,
      says=f'{version}, of {specifier}',
      fix='' if inside else install,
  )


def _plugins(versions: Mapping[str, str]) -> Iterator[_finding.Finding]:
  jax = versions.get('jax')
  plugins = {k: v for k, v in versions.items() if _PLUGINS.fullmatch(k)}
  others = {'jaxlib': versions['jaxlib']} if 'jaxlib' in versions else {}
  for name, version in (others | plugins).items():
    if jax is None or _release(version) == _release(jax):
      yield _finding.Finding(subject=name, says=f'{version}, as jax')
      continue
    extra = re.search(r'(cuda|rocm)\d+', name)
    what = f'jax[{extra[0]}]=={jax}' if extra else f'jaxlib=={jax}'
    yield _finding.Finding(
        subject=name,
        says=f'{version} beside jax {jax}, which would not load it',
        fix=f'Type: pip install -U "{what}", and restart Python',
    )


def _protobuf(versions: Mapping[str, str]) -> Iterator[_finding.Finding]:
  """sentencepiece 0.2.2 and later are built for protobuf 7."""
  protobuf = versions.get('protobuf')
  sentencepiece = versions.get('sentencepiece')
  if protobuf is None or sentencepiece is None:
    return
  built_for_7 = version_lib.Version(sentencepiece).release >= (0, 2, 2)
  clash = built_for_7 and version_lib.Version(protobuf).major < 7
  yield _finding.Finding(
      subject='protobuf',
      says=f'{protobuf} beside sentencepiece {sentencepiece}'
      + (', which is built for protobuf 7: import gemma dies' if clash else ''),
      fix='Type: pip install "sentencepiece==0.2.1"' if clash else '',
  )


def _tensorflow(versions: Mapping[str, str]) -> Iterator[_finding.Finding]:
  """Both packages write into one folder; Kauldron asks for tensorflow-cpu."""
  full, cpu = versions.get('tensorflow'), versions.get('tensorflow-cpu')
  if full is None or cpu is None or full == cpu:
    return
  yield _finding.Finding(
      subject='tensorflow',
      says=f'{full} and tensorflow-cpu {cpu} are mixed in one folder',
      fix='Type: pip uninstall -y tensorflow tensorflow-cpu && pip install'
      f' tensorflow-cpu=={cpu}',
  )


def _release(version: str) -> tuple[int, ...]:
  # `0.12.0.1` is a repaired wheel of 0.12.0.
  release = version_lib.Version(version).release
  return (*release, 0, 0, 0)[:3]


def _normal(name: str) -> str:
  return re.sub(r'[-_.]+', '-', name).lower()
