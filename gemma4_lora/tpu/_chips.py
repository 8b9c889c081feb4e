"""Memory and peak rates of chips, with sources."""

import dataclasses

_GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
  """Memory and rates of one device; None if not published.

  A device as jax counts it: a chip, or one of the two TensorCores of a TPU7x
  chip, which share its memory and its links.

  Attributes:
    name: `'v6e'`.
    hbm_bytes: Memory that a program may use.
    hbm_source: Source of `hbm_bytes`.
    flops_per_s: Peak in bfloat16.
    hbm_bytes_per_s: Between memory and chip.
    ici_bytes_per_s: Rate out of one device over all its links: half of the
      published bidirectional rate.
    source: Page of the rates.
  """

  name: str
  hbm_bytes: int | None = None
  hbm_source: str = ''
  flops_per_s: float | None = None
  hbm_bytes_per_s: float | None = None
  ici_bytes_per_s: float | None = None
  source: str = ''


# The compiler's limit of a program, which differs from the data sheet's 16, 95,
# 32 and 192 / 2 GiB.
_COMPILER = 'what libtpu 0.0.50 holds a program to'

TPUS = {
    chip.name: chip
    for chip in (
        Chip(
            name='v5e',
            hbm_bytes=int(15.75 * _GIB),
            hbm_source=_COMPILER,
            flops_per_s=197e12,
            hbm_bytes_per_s=819e9,
            ici_bytes_per_s=400e9 / 2,
            source='https://docs.cloud.google.com/tpu/docs/v5e',
        ),
        Chip(
            name='v5p',
            hbm_bytes=int(95.73 * _GIB),
            hbm_source=_COMPILER,
            flops_per_s=459e12,
            hbm_bytes_per_s=2765e9,
            ici_bytes_per_s=1200e9 / 2,
            source='https://docs.cloud.google.com/tpu/docs/v5p',
        ),
        Chip(
            name='v6e',
            hbm_bytes=int(31.24 * _GIB),
            hbm_source=_COMPILER,
            flops_per_s=918e12,
            # The page said 1640 before 2025.
            hbm_bytes_per_s=1600e9,
            ici_bytes_per_s=800e9 / 2,
            source='https://docs.cloud.google.com/tpu/docs/v6e',
        ),
        # Ironwood. The page has numbers of a chip, which is two devices.
        Chip(
            name='tpu7x',
            hbm_bytes=int(94.74 * _GIB),
            hbm_source=f'{_COMPILER} (a device is half a chip)',
            flops_per_s=2307e12 / 2,
            hbm_bytes_per_s=7380e9 / 2,
            # The two devices of a chip are connected faster.
            ici_bytes_per_s=1200e9 / 2 / 2,
            source='https://docs.cloud.google.com/tpu/docs/tpu7x',
        ),
    )
}

# Other names of a chip.
ALIASES = {
    'v7': 'tpu7x',
    'v7x': 'tpu7x',
    'tpu7': 'tpu7x',
    '7x': 'tpu7x',
    'ironwood': 'tpu7x',
    'trillium': 'v6e',
    'v6': 'v6e',
    'v5litepod': 'v5e',
}

# By a part of `device_kind`. Dense rates; memory is asked of the device. NVLink
# is what the links of the SXM form carry.
_GPUS = {
    'H200': Chip(
        name='H200',
        flops_per_s=989e12,
        hbm_bytes_per_s=4.8e12,
        ici_bytes_per_s=900e9 / 2,
        source='https://www.nvidia.com/en-us/data-center/h200/',
    ),
    'H100': Chip(
        name='H100',
        flops_per_s=989e12,
        hbm_bytes_per_s=3.35e12,
        ici_bytes_per_s=900e9 / 2,
        source='https://www.nvidia.com/en-us/data-center/h100/',
    ),
    'A100': Chip(
        name='A100',
        flops_per_s=312e12,
        hbm_bytes_per_s=2.039e12,
        ici_bytes_per_s=600e9 / 2,
        source='https://www.nvidia.com/en-us/data-center/a100/',
    ),
}


def gpu(device_kind: str, hbm_bytes: int | None) -> Chip:
  """Returns memory and rates of a GPU.

  Args:
    device_kind: As jax names it, `'NVIDIA H200'`.
    hbm_bytes: Memory that jax may use.
  """
  known = [chip for name, chip in _GPUS.items() if name in device_kind]
  chip = known[0] if known else Chip(name=device_kind)
  return dataclasses.replace(
      chip,
      name=device_kind,
      hbm_bytes=hbm_bytes,
      hbm_source='what jax may take of it',
  )
