"""Config of one of two hosts: see `two_hosts.py`."""

from kauldron import konfig

# pylint: disable=g-import-not-at-top
with konfig.imports():
  from tests.lib import two_hosts
# pylint: enable=g-import-not-at-top


def get_config():
  return two_hosts.trainer(
      workdir=None,
      released=None,
      num_train_steps=0,
      save_interval_steps=1,
      evaluates_at=-1,
  )
