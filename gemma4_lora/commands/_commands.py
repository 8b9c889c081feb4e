"""The table of commands. A command is imported when it is called or asked about."""

import dataclasses
import importlib

import click


@dataclasses.dataclass(frozen=True)
class Row:
  """One command.

  Attributes:
    name: What a user types.
    module: Module of this room that has the command, under `name`.
    help: What it does, in one line.
    function: Name of the function, if `name` is a builtin of Python.
  """

  name: str
  module: str
  help: str
  function: str = ''

  def load(self) -> click.Command:
    module = importlib.import_module(f'gemma4_lora.commands.{self.module}')
    return getattr(module, self.function or self.name)


COMMANDS = {
    row.name: row
    for row in (
        Row(
            'doctor',
            '_doctor_command',
            'Say what is wrong with an installation.',
        ),
        Row('new', '_new_command', 'Write a config for your data.'),
        Row(
            'summary', '_look_commands', 'Print what LoRA adapts, and its cost.'
        ),
        Row('show', '_look_commands', 'Print what a config trains on.'),
        Row('plan', '_fit_commands', 'Say whether the step fits on a chip.'),
        Row('train', '_train_command', 'Train, on one host or several.'),
        Row('vertex', '_fit_commands', 'Submit a job to Vertex AI.'),
        Row(
            'eval',
            '_eval_command',
            'Evaluate a checkpoint of a run.',
            function='evaluate',
        ),
        Row('chat', '_chat_command', 'Talk to a run.'),
        Row(
            'check', '_check_command', 'Say whether a LoRA does what it should.'
        ),
        Row('fuse', '_write_commands', "Merge a run's LoRA into its base."),
        Row(
            'export', '_write_commands', "Write a run's LoRA as a PEFT folder."
        ),
        Row('quantize', '_write_commands', 'Write the base, quantised.'),
    )
}
