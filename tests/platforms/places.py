"""Where our users start from: what is installed there before us.

Read on 2026-11-30, from the images' own lists. Only what our install touches:
what it leaves alone cannot break, and would be gigabytes.
"""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
  """An environment, before gemma4_lora.

  Attributes:
    python: Its version.
    packages: Requirements of what is there.
    imported: Modules that a notebook's kernel has imported before its first
      cell: if their package is replaced, the session must restart.
    pip: Version of the pip that is there; empty: the newest.
    notebook: Whether users type a notebook's cell there; else what the README
      says, in a shell.
  """

  python: str
  packages: tuple[str, ...] = ()
  imported: tuple[str, ...] = ()
  pip: str = ''
  notebook: bool = True


_COLAB = (
    'jax==0.7.2',
    'jaxlib==0.7.2',
    'flax==0.11.2',
    'orbax-checkpoint==0.12.4',
    'tensorstore==0.1.85',
    'etils==1.14.0',
    'numpy==2.1.3',
    'sentencepiece==0.2.2',
    'ipython',
)
_COLAB_PIP = '24.1.2'
_IN_NOTEBOOKS = ('numpy', 'google.protobuf')

PLACES = {
    'colab_cpu': Place(
        python='3.13',
        pip=_COLAB_PIP,
        packages=(*_COLAB, 'protobuf==5.29.6', 'tensorflow==2.20.0'),
        imported=_IN_NOTEBOOKS,
    ),
    'colab_gpu': Place(
        python='3.13',
        pip=_COLAB_PIP,
        packages=(
            *_COLAB,
            'protobuf==5.29.6',
            'tensorflow==2.20.0',
            'jax-cuda12-plugin==0.7.2',
            'jax-cuda12-pjrt==0.7.2',
        ),
        imported=_IN_NOTEBOOKS,
    ),
    'colab_tpu': Place(
        python='3.13',
        pip=_COLAB_PIP,
        packages=(*_COLAB, 'protobuf==7.35.1', 'libtpu==0.0.21.1'),
        imported=_IN_NOTEBOOKS,
    ),
    # Colab's of some months before; without what Colab has of TPUs.
    'kaggle': Place(
        python='3.12',
        packages=(
            'jax==0.5.2',
            'jaxlib==0.5.1',
            'flax==0.10.6',
            'orbax-checkpoint==0.11.5',
            'numpy==1.26.4',
            'protobuf==3.20.3',
            'tensorflow==2.18.0',
            'sentencepiece==0.2.0',
            'ipython',
        ),
        imported=_IN_NOTEBOOKS,
    ),
    # What `jax[tpu]`, without a version, is beside this tensorflow-cpu.
    'kaggle_tpu': Place(
        python='3.12',
        packages=(
            'jax[tpu]==0.5.3',
            'flax==0.10.6',
            'orbax-checkpoint==0.11.24',
            'tensorstore==0.1.74',
            'grain==0.2.18',
            'qwix==0.1.2',
            'numpy==2.0.2',
            'protobuf==5.29.6',
            'tensorflow-cpu==2.18.0',
            'sentencepiece==0.2.3',
            'ipython',
        ),
        imported=_IN_NOTEBOOKS,
    ),
    # An image with jax for a GPU, which its owner wants to keep.
    'gpu_image': Place(
        python='3.12',
        packages=(
            'jax==0.11.2',
            'jaxlib==0.11.2',
            'jax-cuda13-plugin==0.11.2',
            'jax-cuda13-pjrt==0.11.2',
            'flax==0.12.0',
            'orbax-checkpoint==0.12.4',
            'numpy==2.1.3',
            'ipython',
        ),
        imported=('numpy', 'jax'),
    ),
    # Ubuntu 22.04's Python and its pip.
    'tpu_vm': Place(python='3.10', pip='22.0.2', notebook=False),
}
