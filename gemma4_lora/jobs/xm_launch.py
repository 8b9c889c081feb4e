r"""XManager launcher: trains a config on TPUs of Vertex AI.

```sh
xmanager launch gemma4_lora/jobs/xm_launch.py -- \
    --cfg=configs/gemma4_e2b_lora_mtnt.py --topology=v6e:1x1 \
    --region=us-east5 --project=my-project --workdir=gs://bucket/run
```

Flags are those of `python -m gemma4_lora vertex`, and so is the job: planned
first, printed with `--dry-run`. XManager keeps a record of it.
"""

# Before what has much to say.
import gemma4_lora.quiet  # noqa: F401

from collections.abc import Sequence
import sys

from absl import app
from absl import flags
from kauldron import konfig
from xmanager import xm
from xmanager import xm_local
from xmanager.cloud import vertex
from xmanager.xm_local import executables

from gemma4_lora.jobs import _flags
from gemma4_lora.jobs import _vertex_command
from gemma4_lora.jobs import _xm_client

_CONFIG = konfig.DEFINE_config_file(
    'cfg', None, 'Config of the run.', lock_config=False
)
_TOPOLOGY = flags.DEFINE_string('topology', 'v6e:1x1', 'Chips, as v6e:2x4.')


def main(argv: Sequence[str]) -> None:
  """Launches one work unit."""
  try:
    status = _launch(argv)
  except ValueError as e:
    print(f'gemma4_lora: {e}', file=sys.stderr)
    status = 1
  if status:
    sys.exit(status)


def _launch(argv: Sequence[str]) -> int:
  if argv[1:] or not flags.FLAGS['cfg'].present:
    raise ValueError(
        f'--cfg=... is missing, or is not all that is needed. Got: {argv[1:]}'
    )
  request = _flags.request(_CONFIG, _TOPOLOGY.value)
  request.job()  # What is wrong with it, before minutes of planning.
  status = _vertex_command.check(
      _CONFIG.value,
      request,
      plan=_flags.PLAN.value,
      force=_flags.FORCE.value,
  )
  if status:
    return status
  vertex.set_default_client(_xm_client.VertexClient(request))
  with xm_local.create_experiment(request.job_name) as experiment:
    experiment.add(
        xm.Job(
            # Not packaged: XManager would pull the image, and push it again.
            executables.GoogleContainerRegistryImage(
                name=request.job_name, image_path=request.image_uri
            ),
            executor=_xm_client.executor(request.tpu),
            args=request.args,
        )
    )
  return 0


if __name__ == '__main__':
  app.run(main)
