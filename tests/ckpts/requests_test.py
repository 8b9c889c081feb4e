"""Known loaders are read for their settings; a subclass of one is called."""

from gemma import gm
from kauldron import kd
import pytest

from gemma4_lora import g4
from gemma4_lora.ckpts import _requests
from tests.lib import own_transforms

_LOAD = g4.ckpts.PartialLoad(path='base')
_GEMMA = gm.ckpts.LoadCheckpoint(path='base')
_OWN = own_transforms.Doubled(path='base')
_NOOP = kd.ckpts.NoopTransform()


def _skip(wrapped):
  return g4.ckpts.SkipLoRA4(wrapped=wrapped)


def _multi(*transforms):
  return kd.ckpts.MultiTransform(
      **{f't{i}': x for i, x in enumerate(transforms)}
  )


@pytest.mark.parametrize(
    ('transform', 'restored_by', 'unknown', 'into_shapes'),
    [
        (_LOAD, ['PartialLoad'], (), True),
        (_skip(_LOAD), ['SkipLoRA4(PartialLoad)'], (), True),
        (_skip(_GEMMA), ['SkipLoRA4(LoadCheckpoint)'], (), True),
        (
            _multi(_skip(_LOAD), g4.ckpts.LoadLoRA(path='lora')),
            ['SkipLoRA4(PartialLoad)'],
            (),
            True,
        ),
        # Theirs restore, and want arrays.
        (_GEMMA, ['SkipLoRA4(LoadCheckpoint)'], (), False),
        (
            gm.ckpts.SkipLoRA(wrapped=_GEMMA),
            ['SkipLoRA4(LoadCheckpoint)'],
            (),
            False,
        ),
        (_skip(_multi(_LOAD)), ['SkipLoRA4(PartialLoad)'], (), False),
        (_NOOP, [], (), False),
        # Subclasses, wherever they are.
        (_OWN, [], ('Doubled',), False),
        (_skip(_OWN), [], ('Doubled',), False),
        (gm.ckpts.SkipLoRA(wrapped=_OWN), [], ('Doubled',), False),
        (_skip(_multi(_multi(_OWN))), [], ('Doubled',), False),
        (
            _multi(_skip(_LOAD), _OWN),
            ['SkipLoRA4(PartialLoad)'],
            ('Doubled',),
            False,
        ),
        (
            own_transforms.DoubledSkip(wrapped=_LOAD),
            [],
            ('DoubledSkip',),
            False,
        ),
    ],
)
def test_steps(transform, restored_by, unknown, into_shapes):
  steps = _requests.steps(transform)
  assert [x.request.who for x in steps if x.request] == restored_by
  assert _requests.unknown(transform) == unknown
  assert all(x.takes_shapes for x in steps) == into_shapes
  if not into_shapes:
    with pytest.raises(_requests.UnknownError, match='init_transform= has a'):
      _requests.restored(transform, state=None)
  if unknown or not restored_by:
    with pytest.raises(_requests.UnknownError, match='has a|restores no base'):
      _requests.check_known(transform)
  else:
    _requests.check_known(transform)


def test_what_is_not_restored_under_lora_may_be_without_it():
  """Kauldron's own loader in a run without LoRA is called, not refused."""
  loader = kd.ckpts.SimpleCheckpointLoader(workdir='x', load_opt_state=True)
  with pytest.raises(_requests.UnknownError, match='SimpleCheckpointLoader'):
    _requests.restored(loader, state=None)
