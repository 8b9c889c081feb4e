"""XLA's text format, and text that is something else."""

import pytest

from gemma4_lora.tpu import _hlo_text


def test_text_that_is_none():
  with pytest.raises(ValueError, match='has no ENTRY'):
    _ = _hlo_text.entry('module @jit_f')


@pytest.mark.parametrize(
    ('shape', 'num_bytes'),
    [
        ('f32[2,3]{1,0}', 24),
        ('(bf16[4]{0:T(128)(2,1)}, s32[], pred[5])', 8 + 4 + 5),
        ('s4[3]', 2),
        ('token[]', 0),
        ('f8e4m3fn[7]', 7),
        ('(f32[2]{0}, /*index=1*/c64[2]{0})', 8 + 16),
    ],
)
def test_bytes_of_a_shape(shape, num_bytes):
  assert _hlo_text.shape_bytes(shape) == num_bytes
