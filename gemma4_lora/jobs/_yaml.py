"""A job as text for `gcloud ai custom-jobs create --config`, and back."""

from __future__ import annotations

import typing
from typing import Any

from google.protobuf import json_format
import yaml

if typing.TYPE_CHECKING:
  from google.cloud.aiplatform_v1 import types


def to_yaml(spec: types.CustomJobSpec) -> str:
  """Returns a `CustomJobSpec` in the API's JSON names, which gcloud reads.

  Args:
    spec: `job_spec` of a `CustomJob`. The job's own name and its region are
      flags of gcloud.

  Raises:
    ValueError: The text would not be this job again: see `from_yaml`.
  """
  tree = json_format.MessageToDict(type(spec).pb(spec))
  for pool in tree['workerPoolSpecs']:
    # In JSON, 64 bits are a string.
    pool['replicaCount'] = int(pool['replicaCount'])
  text = yaml.safe_dump(tree, sort_keys=False, width=10_000)
  if from_yaml(text) != spec:
    raise ValueError(f'YAML cannot hold this job: {spec}')
  return text


def from_yaml(text: str) -> types.CustomJobSpec:
  """Returns what a text says, checked against the API's message types.

  Raises:
    ValueError: A field is not one of `CustomJobSpec`, or is of another type.
  """
  from google.cloud.aiplatform_v1 import types as types_lib  # pylint: disable=g-import-not-at-top

  spec = types_lib.CustomJobSpec()
  tree: Any = yaml.safe_load(text)
  try:
    json_format.ParseDict(tree, types_lib.CustomJobSpec.pb(spec))
  except json_format.ParseError as e:
    raise ValueError(f'Not a CustomJobSpec of Vertex AI: {e}') from e
  return spec
