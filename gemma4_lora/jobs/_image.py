"""The container image of a job."""

import pathlib

from gemma4_lora.jobs import _request
from gemma4_lora.jobs.command_line import _shipped


def dockerfile(config: _request.Config) -> str:
  """Returns a Dockerfile for a clone of this repository, and a config in it.

  Raises:
    ValueError: The config is not below the folder where the command is run.
  """
  path = pathlib.PurePosixPath(config.path_in_image.split(':', 1)[0])
  if path.is_absolute():
    raise ValueError(
        f'--cfg={config.path} is not below this folder, and docker can only copy'
        ' what is: run this in a clone of gemma4_lora that has the config, or'
        ' leave --dockerfile out and put the config into your image.'
    )
  # A shipped config is in the package.
  is_shipped = _shipped.find(config.path) != config.path
  folders = {'configs'} if is_shipped else {'configs', path.parent.as_posix()}
  copies = '\n'.join(f'COPY {x} {x}' for x in sorted(folders))
  return f"""\
FROM python:3.12-slim
# What OpenCV, which Kauldron imports, is linked to.
RUN apt-get update \\
    && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 \\
    && rm -rf /var/lib/apt/lists/*
WORKDIR /gemma4_lora
COPY pyproject.toml README.md LICENSE ./
COPY gemma4_lora gemma4_lora
{copies}
RUN pip install --no-cache-dir ".[tpu,eval]"
ENTRYPOINT ["python", "-m", "gemma4_lora", "train"]
"""
