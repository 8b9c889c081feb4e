"""Restricts each string of a job, so that it cannot be read as something else.

What a user gives is printed as YAML, in a Dockerfile, and in lines to paste into
a shell. So each field takes what its own grammar needs, and nothing that any of
those could read as more than a name: no line breaks, spaces, quotes, `$`, or
backticks, no `..`, and no `-` in front, which a command would take for a flag.
"""

import dataclasses
import re

_NAME = r'[A-Za-z0-9_.+][A-Za-z0-9_.+-]*'
_SEGMENTS = rf'{_NAME}(?:/{_NAME})*'
# https://github.com/opencontainers/distribution-spec/blob/main/spec.md, with
# capitals too, and digests of any length.
_COMPONENT = r'[A-Za-z0-9]+(?:(?:[._]|__|-+)[A-Za-z0-9]+)*'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Field:
  """A string of a job.

  Attributes:
    flag: Its flag, `'--job_name'`.
    pattern: A regular expression of valid values.
    allowed: The same in words, with an example.
    most: The most characters.
  """

  flag: str
  pattern: str
  allowed: str
  most: int = 1024

  def check(self, value: str) -> str:
    """Returns the value.

    Raises:
      ValueError: It is not what the field holds; names the flag.
    """
    too_long = len(value) > self.most
    # `..` may stand in a name, as in `a..b`, but never be one.
    climbs = '..' in re.split('[/:]', value)
    if too_long or climbs or not re.fullmatch(self.pattern, value):
      raise ValueError(
          f'{self.flag}={shown(value)} is not {self.allowed}; at most'
          f' {self.most} characters.'
      )
    return value


CONFIG = Field(
    flag='--cfg',
    pattern=rf'/?{_SEGMENTS}(?::[A-Za-z0-9_.,:=+/@-]*)?',
    allowed=(
        'the path of a config in an image: letters, digits, "_", "-", "." and'
        ' "+" between slashes, no ".." and no "-" in front, then ":" and a'
        ' parameter if it has one, as in configs/quickstart.py'
    ),
)
JOB_NAME = Field(
    flag='--job_name',
    pattern=_NAME,
    allowed=(
        'the name of a job: letters, digits, "_", "-", "." and "+", no "-" in'
        ' front, as in gemma4_e2b_lora_mtnt'
    ),
    most=128,  # Vertex's limit of `displayName`.
)
PROJECT = Field(
    flag='--project',
    # With a domain in front in old ones, or the number that Google gave it.
    pattern=r'(?:[a-z0-9][a-z0-9.-]*:)?[a-z](?:[a-z0-9-]*[a-z0-9])?|[0-9]+',
    allowed=(
        'the ID of a project of Google Cloud: lower-case letters, digits and'
        ' "-", from a letter on, as in my-project-123, or its number'
    ),
    most=100,
)
IMAGE = Field(
    flag='--image',
    pattern=(
        rf'{_COMPONENT}(?::[0-9]+(?=/))?(?:/{_COMPONENT})*'
        r'(?::[A-Za-z0-9_][A-Za-z0-9_.-]{0,127})?'
        r'(?:@[a-z0-9]+:[0-9a-f]+)?'
    ),
    allowed=(
        'the name of a container image, HOST/PATH:TAG or HOST/PATH@DIGEST, such'
        ' as us-east5-docker.pkg.dev/my-project/my-repository/gemma4_lora:latest'
    ),
)
WORKDIR = Field(
    flag='--workdir',
    pattern=r'gs://[a-z0-9][a-z0-9._-]*(?:/[A-Za-z0-9_.+=@,%-]+)*/?',
    allowed=(
        'a folder in Cloud Storage, as in gs://bucket/folder: letters, digits'
        ' and "_.+=@,%-" between slashes, no ".."'
    ),
)
SERVICE_ACCOUNT = Field(
    flag='--service_account',
    pattern=r'[A-Za-z0-9][A-Za-z0-9._-]*@[a-z0-9][a-z0-9.-]*',
    allowed=(
        "a service account's address, as in"
        ' trainer@my-project.iam.gserviceaccount.com'
    ),
)


def check_override(argument: str) -> str:
  """Returns `--cfg.NAME=VALUE`, whose value may be any line of text.

  It is an argument of the container's command, which no shell reads: quotes and
  spaces are data there, as in `--cfg.model.targets=['q', 'v']`.

  Raises:
    ValueError: It has line breaks, or what Vertex AI might replace.
  """
  name, _, value = argument.partition('=')
  if not re.fullmatch(r'--?[A-Za-z0-9_]+(?:\.[A-Za-z0-9_\[\]]+)+', name):
    raise ValueError(
        f'{shown(name)}: an override is --cfg.NAME=VALUE, with letters, digits,'
        ' "_" and "." in the name.'
    )
  if not value.isprintable():
    raise ValueError(
        f'{name}={shown(value)} has a line break or another control character.'
        " A job's arguments are one line of printable text each: set it in the"
        ' config.'
    )
  if '$(' in value:
    # https://cloud.google.com/vertex-ai/docs/reference/rest/v1/EnvVar
    raise ValueError(
        f'{name}={shown(value)} has "$(", which Vertex AI may replace by a'
        ' variable of the container. Printable text without it is allowed: set'
        ' it in the config.'
    )
  return argument


def shown(value: str) -> str:
  """Returns a value for an error: quoted if it would break the line, or cut."""
  plain = value.isprintable() and value == value.strip()
  text = value if plain else repr(value)
  return text if len(text) <= 200 else f'{text[:200]}…'
