"""Jobs that tests ask for."""

from typing import Any

from gemma4_lora.jobs import _request


def request_of(**changes: Any) -> _request.Request:
  """Returns the request of one chip, with changes."""
  return _request.Request(
      **{
          'config': _request.Config(path='configs/quickstart.py'),
          'topology': 'v6e:1x1',
          'region': 'us-east5',
          'workdir': 'gs://bucket/run',
          'project': 'my-project',
      }
      | changes
  )


def config(path: str, *overrides: str) -> _request.Config:
  """Returns a config as a command line names it."""
  return _request.Config(path=path, overrides=overrides)
