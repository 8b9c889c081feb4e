"""A server, as a row of the table: what it reads, and what it does with it."""

from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import dataclasses
from typing import Literal

from absl import logging

from gemma4_lora.servers import _adapter

# `refuses`: it ends with an error. `ignores`: it answers with other numbers than
# those that were trained, without a word. `needs`: it does what it should, once
# it is told to.
Kind = Literal['refuses', 'ignores', 'needs']


@dataclasses.dataclass(frozen=True)
class Finding:
  """Something that a server does with a folder."""

  kind: Kind
  text: str

  @property
  def is_problem(self) -> bool:
    return self.kind != 'needs'


Rules = Callable[[_adapter.Adapter], Iterator[Finding]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Server:
  """A row of the table.

  Attributes:
    name: The value of `--for`.
    version: Package and version whose source was read.
    source: Where its rules stand.
    rules: Yields what it does with a PEFT folder.
    one_rank: Whether all modules must have one rank: others get zeros.
    one_scale: Whether it takes `lora_alpha / rank` for all: other scales go into
      B.
    names_alone: Whether `target_modules` must be a list of names.
    values_apart: Whether a projection that gives keys and values is two modules
      there.
    experts: How it takes LoRA on routed experts, if at all: see `save_peft`.
    is_peft: Whether it reads PEFT folders at all.
  """

  name: str
  version: str
  source: str
  rules: Rules
  one_rank: bool = False
  one_scale: bool = False
  names_alone: bool = False
  values_apart: bool = False
  experts: Literal['stacked', 'per_expert'] = 'stacked'
  is_peft: bool = True


def check(server: Server, found: Iterable[Finding], *, who: str) -> None:
  """Raises ValueError if a server refuses a LoRA, or would answer otherwise.

  Args:
    server: The server.
    found: What it does with the LoRA.
    who: What asks, for messages.
  """
  found = list(found)
  problems = [f'{x.kind} {x.text}' for x in found if x.is_problem]
  if problems:
    raise ValueError(
        f'{who}: {server.name} ({server.version}) {"; it ".join(problems)}.'
    )
  for x in found:
    logging.info('%s: %s needs %s.', who, server.name, x.text)
