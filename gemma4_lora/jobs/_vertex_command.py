"""`python -m gemma4_lora vertex`."""

import shlex
import sys
from typing import Any

from gemma4_lora.jobs import _image
from gemma4_lora.jobs import _request


def run(
    cfg: Any,
    request: _request.Request,
    *,
    plan: bool,
    force: bool,
    cache: str | None = None,
) -> int:
  """Plans a job, and prints it or submits it.

  Args:
    cfg: A `konfig.ConfigDict`.
    request: The user's request.
    plan: Whether to ask the planner.
    force: Whether to go on, whatever it says.
    cache: Folder of earlier plans.

  Returns:
    The exit status: 0 for success, 1 if the config does not fit, 2 if that is
    unknown.

  Raises:
    ValueError: No job can be made of the request, or Vertex AI refuses it.
  """
  job = request.job()  # What is wrong with it, before minutes of planning.
  if status := check(cfg, request, plan=plan, force=force, cache=cache):
    return status
  if request.dry_run:
    from gemma4_lora.jobs import _yaml  # pylint: disable=g-import-not-at-top

    print(header(request), _yaml.to_yaml(job.job_spec), sep='', end='')
    return 0
  from gemma4_lora.jobs import _submit  # pylint: disable=g-import-not-at-top

  created = _submit.submit(job, parent=request.parent)
  print(f'{created.name}\n{_submit.console_url(created)}')
  return 0


def check(
    cfg: Any,
    request: _request.Request,
    *,
    plan: bool,
    force: bool,
    cache: str | None = None,
) -> int:
  """Checks a job with the planner; arguments and return value as in `run`."""
  for note in request.notes:
    print(f'gemma4_lora: {note}.', file=sys.stderr)
  if not plan:
    print('gemma4_lora: not planned: --noplan.', file=sys.stderr)
    return 0
  # Imports the models, which take a while.
  from gemma4_lora.jobs import _plan_first  # pylint: disable=g-import-not-at-top

  return _plan_first.ask(
      cfg, topology=request.tpu.topology, force=force, cache=cache
  )


def print_dockerfile(config: _request.Config) -> None:
  print(_image.dockerfile(config), end='')


def header(request: _request.Request) -> str:
  """Returns comments that say what the job is, and how gcloud takes it."""
  tpu = request.tpu
  flags = {
      'config': 'job.yaml',
      'region': request.region,
      'project': request.project,
      'display-name': request.job_name,
  }
  given = [f'--{name}={value}' for name, value in flags.items() if value]
  command = shlex.join(['gcloud', 'ai', 'custom-jobs', 'create', *given])
  return (
      f'# {request.config.path_in_image} on {tpu.topology}: {tpu.num_chips} x'
      f' {tpu.chip} in {tpu.num_hosts} x {tpu.machine_type}.\n# {command}\n'
  )
