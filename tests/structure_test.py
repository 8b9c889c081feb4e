"""Rooms and arrows: what may import what, read from the sources.

Each rule is also shown to fail on a package that breaks it.
"""

import pathlib

import pytest

from tests.lib import structure

_ROOT = pathlib.Path(__file__).parents[1]
_PACKAGE = structure.Package(_ROOT / 'gemma4_lora')
_TESTS = structure.Package(_ROOT / 'tests')

# From the top down: a module imports its own room, and rooms below. A folder
# that has an `__init__` with names has it at its top.
_ROOMS = (
    '__main__',
    'commands',
    'new_config',
    'g4',
    'tiny',
    'doctor',
    'train',
    'train/checks',
    'train/progress',
    'evals',
    'runs',
    'testing',
    'ckpts',
    'ckpts/restore',
    'ckpts/lora',
    'ckpts/sources',
    'hf/weights',
    'hf',
    'nn/inspect',
    'nn/from_base',
    'nn',
    'nn/blocks',
    'nn/attention',
    'nn/wrapper',
    'nn/branches',
    'losses',
    'jobs',
    'jobs/command_line',
    'tpu',
    'tpu/program',
    'data/reports',
    'data/preferences',
    'data',
    'data/images',
    'data/sources',
    'data/rules',
    'data/layouts',
    'data/templates',
    'data/rows',
    'data/conversations',
    'optim',
    'servers',
    'peft',
    'quant',
    'targets',
    'variants',
    'gemma4/forward',
    'gemma4',
    'host/folders',
    'host/files',
    'host/ranges',
    'host',
    'quiet',
    '_trees',
)
# Gemma 4's private modules: what we know of them stands in one room.
_KNOW_UPSTREAM = ('gemma4', 'gemma4/forward')
_MOST_MODULES = 16


def test_no_module_imports_itself_by_way_of_others():
  assert structure.circles(_PACKAGE) == []


def test_every_room_is_in_the_list():
  assert structure.unlisted(_PACKAGE, _ROOMS) == set()


def test_rooms_of_a_folder_stand_together():
  assert structure.scattered(_ROOMS) == []


def test_no_room_imports_one_above():
  assert structure.arrows_up(_PACKAGE, _ROOMS) == []


def test_no_folder_is_crowded():
  assert structure.crowded(_PACKAGE, most=_MOST_MODULES) == {}


def test_no_two_modules_have_one_name():
  assert structure.namesakes(_PACKAGE) == {}


def test_no_test_imports_another():
  assert set(structure.imports_of_tests(_TESTS)) == set()


def test_private_modules_of_gemma_4_are_known_in_one_room():
  found = structure.private_imports(
      _PACKAGE, 'gemma.gm.nn.gemma4', allowed=_KNOW_UPSTREAM
  )
  assert found == {}


@pytest.fixture(name='package')
def _package(tmp_path):
  """Makes a package: sources by path. Rooms `top`, `low`, `low/sub`."""

  def make(**sources):
    for path in (
        '__init__',
        'top/__init__',
        'low/__init__',
        'low/sub/__init__',
    ):
      sources.setdefault(path, '')
    for path, source in sources.items():
      file = tmp_path / 'p' / f'{path}.py'
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(source)
    return structure.Package(tmp_path / 'p')

  return make


_THREE = ('top', 'low', 'low/sub')


@pytest.mark.parametrize(
    'source',
    [
        'from p.low import _b',
        'import p.low._b',
        'from p.low._b import name',
        'def f():\n  from p.low import _b',
        'import typing\nif typing.TYPE_CHECKING:\n  from p.low import _b',
    ],
)
def test_a_circle_is_seen(package, source):
  made = package(**{'low/_a': source, 'low/_b': 'from p.low import _a'})
  (circle,) = structure.circles(made)
  assert circle.count('p.low._a') and circle.count('p.low._b')


@pytest.mark.parametrize(
    ('module', 'source', 'arrow'),
    [
        ('low/_a', 'from p.top import _b', 'p.low._a -> p.top._b'),
        ('low/_a', 'from p import top', 'p.low._a -> p.top'),
        ('low/_a', 'from p import low', 'p.low._a -> p.low'),
        ('low/sub/_a', 'from p.low import _c', 'p.low.sub._a -> p.low._c'),
        ('low/sub/_a', 'from p.low import name', 'p.low.sub._a -> p.low'),
    ],
)
def test_an_arrow_up_is_seen(package, module, source, arrow):
  made = package(**{module: source, 'top/_b': '', 'low/_c': ''})
  assert structure.arrows_up(made, _THREE) == [arrow]


def test_arrows_down_and_faces_are_allowed(package):
  made = package(
      **{
          'top/_a': 'from p.low import name\nfrom p.low.sub import _d',
          'low/__init__': 'from p.low._b import x\nfrom p.low.sub._d import y',
          'low/_b': 'from p.low.sub import _d\nfrom p.low import _c',
          'low/_c': 'import os',
          'low/sub/_d': '',
      }
  )
  assert structure.arrows_up(made, _THREE) == []
  assert structure.circles(made) == []


def test_a_room_outside_the_list_is_seen(package):
  assert structure.unlisted(package(), _THREE) == set()
  assert structure.unlisted(package(), (*_THREE, 'old')) == {'old'}
  assert structure.unlisted(package(**{'new/_a': ''}), _THREE) == {'new'}


def test_a_scattered_folder_is_seen():
  assert structure.scattered(('low/sub', 'top', 'low')) == ['low']


def test_a_crowded_folder_and_namesakes_are_seen(package):
  made = package(**{'low/_a': '', 'top/_a': '', 'top/_b': ''})
  (name,) = structure.crowded(made, most=2)
  assert name.endswith('p/top')
  assert list(structure.namesakes(made)) == ['_a']


def test_an_import_of_a_test_is_seen(package):
  made = package(**{'a_test': '', 'b_test': 'from p import a_test'})
  assert structure.imports_of_tests(made) == ['p.b_test -> p.a_test']


def test_a_private_import_is_seen(package):
  source = 'import x.y.z\nfrom x.y import _modules\nfrom x.y.z._a import name'
  made = package(**{'low/_a': source, 'top/_b': source})
  found = structure.private_imports(made, 'x.y', allowed=('low',))
  assert found == {'p.top._b': ['x.y._modules', 'x.y.z._a.name']}
