r"""XManager launcher: trains a config on TPUs of Vertex AI.

```sh
xmanager launch gemma4_lora/jobs/xm_launch.py -- \
    --cfg=configs/gemma4_e2b_lora_mtnt.py --topology=v6e:1x1 \
    --region=us-east5 --project=my-project --workdir=gs://bucket/run
```

Flags are those of `gemma4_lora vertex`, and so is the job: planned
first, printed with `--dry_run`. XManager keeps a record of it.
"""

# Before what has much to say.
import gemma4_lora.quiet  # noqa: F401

from collections.abc import Sequence
import re
import sys
from typing import Any

from absl import app
from absl import flags
from kauldron import konfig
from xmanager import xm
from xmanager import xm_local
from xmanager.cloud import vertex
from xmanager.xm_local import executables

from gemma4_lora.jobs import _job_options
from gemma4_lora.jobs import _vertex_command
from gemma4_lora.jobs import _xm_client
from gemma4_lora.jobs.command_line import _config

_CONFIG = konfig.DEFINE_config_file(
    'cfg', None, 'Config of the run.', lock_config=False
)
_WORKDIR = flags.DEFINE_string('workdir', None, 'gs://bucket/folder.')
_TOPOLOGY = flags.DEFINE_string('topology', 'v6e:1x1', 'Chips, as v6e:2x4.')
for _option in _job_options.OPTIONS:
  _is_switch = isinstance(_option.default, bool)
  _define: Any = flags.DEFINE_bool if _is_switch else flags.DEFINE_string
  _define(_option.name, _option.default, _option.help)
flags.DEFINE_alias('dry-run', 'dry_run')  # As `gemma4_lora vertex` takes it.


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
  flag: Any = flags.FLAGS[_CONFIG.name]
  if argv[1:] or not flag.present:
    raise ValueError(
        f'--cfg=... is missing, or is not all that is needed. Got: {argv[1:]}'
    )
  config = _config.load(
      flag.config_filename,
      overrides=[x for x in sys.argv if re.match(r'--?(no)?cfg\.', x)],
      workdir=_WORKDIR.value,
  )
  options: dict[str, Any] = {
      x.name: flags.FLAGS[x.name].value for x in _job_options.OPTIONS
  }
  plan, force = options.pop('plan'), options.pop('force')
  request = _job_options.request(config, topology=_TOPOLOGY.value, **options)
  request.job()  # What is wrong with it, before minutes of planning.
  status = _vertex_command.check(config.value, request, plan=plan, force=force)
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
