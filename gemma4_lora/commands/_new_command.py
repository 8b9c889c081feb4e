"""`new`: a config for a user's data."""

import click

from gemma4_lora.commands import _options
from gemma4_lora.commands import _values


@click.command(
    epilog='\b\nExample:\n  gemma4_lora new my_config.py --model=E2B'
    ' --data=train.jsonl'
)
@click.argument('file', metavar='FILE.py')
@click.option(
    '--model',
    default='E2B',
    show_default=True,
    metavar='NAME',
    help='E2B, E4B, 12B, 31B or 26B_A4B.',
)
@click.option(
    '--data',
    'path',
    required=True,
    type=_values.Text(),
    metavar='PATH',
    help='JSONL, plain or compressed, or Parquet; a pattern; here or in a bucket.',
)
@click.option(
    '--method',
    type=click.Choice(['lora', 'qlora', 'dora', 'dpo']),
    default='lora',
    show_default=True,
    help='qlora holds the base in 4 bits; dpo takes pairs of answers.',
)
@_options.topology
@click.option('--overwrite', is_flag=True, help='Replace FILE.py if it exists.')
def new(**options) -> None:
  """Write a config for your data, which show, plan and train take as it is.

  It looks at the columns of the data, tries each task that may read them on the
  first rows, and takes the one that reads most.
  """
  _options.be_quiet()
  from gemma4_lora.new_config import _new_config  # pylint: disable=g-import-not-at-top

  for line in _new_config.write(**options):
    print(line)
