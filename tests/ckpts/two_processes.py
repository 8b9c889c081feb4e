"""One of two processes of a run: `two_processes.py <port> <index> <folder>`."""

import pathlib
import sys

import jax


def main(port: str, index: str, folder: str) -> None:
  # Before anything makes an array.
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_num_cpu_devices', 2)
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  jax.distributed.initialize(f'127.0.0.1:{port}', 2, int(index))
  assert jax.device_count() == 4

  from jax.experimental import multihost_utils  # pylint: disable=g-import-not-at-top
  from kauldron import kd  # pylint: disable=g-import-not-at-top
  import numpy as np  # pylint: disable=g-import-not-at-top

  from tests import training  # pylint: disable=g-import-not-at-top
  from tests.ckpts import runs  # pylint: disable=g-import-not-at-top

  root = pathlib.Path(folder)
  fsdp = kd.sharding.FSDPSharding(min_size_to_shard_mb=0)
  sharding = kd.sharding.ShardingStrategy(params=fsdp)

  def make():
    return runs.trainer(
        root / 'run',
        root / 'released',
        sharding=sharding,
        options={'max_to_keep': 2},
    )

  def shard(state):
    # Params in four pieces, all else on all devices.
    rest = kd.sharding.REPLICATED
    shardings = state.replace(
        params=fsdp(state.params),
        opt_state=jax.tree.map(lambda _: rest, state.opt_state),
        step=rest,
    )
    host = jax.tree.map(np.asarray, state)
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]),
        host,
        shardings,
    )

  made = make()
  base = training.random_params(runs.base_model())
  for step in (1, 2, 3):
    state = shard(runs.state(made, seed=step, params=base))
    made.checkpointer.save(state, step=step)
  made.checkpointer.close()
  made = make()
  got = made.checkpointer.restore(shard(runs.state(made, seed=0)))
  made.checkpointer.close()

  def gather(x):
    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  got, want = jax.tree.map(gather, (got, state))
  jax.tree.map(np.testing.assert_array_equal, got, want)
  print('restored', flush=True)


if __name__ == '__main__':
  main(*sys.argv[1:])
