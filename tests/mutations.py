"""Breaks the package in one place at a time: does a test fail?

```sh
uv run --extra dev python -m tests.mutations [--only N]
```

Not part of the suite: each mutation runs its tests in a process of its own, on
a copy of the commit at hand. The exit status is 1 if a mutation goes unseen.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import tempfile

_ROOT = pathlib.Path(__file__).parent.parent
_FAILED = 1  # pytest's exit status: tests ran, and some failed.


@dataclasses.dataclass(frozen=True)
class Mutation:
  """A fault, and the tests that must see it.

  Attributes:
    file: A module, relative to `gemma4_lora/`.
    old: A text that stands in it once.
    new: What to write instead.
    tests: A file relative to `tests/`, and further arguments of pytest.
  """

  file: str
  old: str
  new: str
  tests: tuple[str, ...]


ALL = (
    Mutation(
        'targets/_scale.py',
        'math.sqrt(rank) if use_rslora else rank',
        'rank if use_rslora else math.sqrt(rank)',
        ('nn/branches/experts_test.py', '-k', 'rslora'),
    ),
    Mutation(
        'optim/_lora_plus.py',
        "return name == 'b' and",
        "return name == 'a' and",
        ('optim/lora_plus_test.py',),
    ),
    Mutation(
        'losses/_dpo.py',
        'rewards[..., 0] - rewards[..., 1]',
        'rewards[..., 1] - rewards[..., 0]',
        ('losses/dpo_test.py',),
    ),
    Mutation(
        'losses/_dpo.py',
        '-jnp.where(mask, losses, 0).sum(-1)',
        '-losses.sum(-1)',
        ('losses/dpo_test.py',),
    ),
    Mutation(
        'data/_filters.py',
        'length <= self.max_length',
        'length < self.max_length',
        ('data/filters_test.py',),
    ),
    Mutation(
        'data/_first_fit.py',
        'np.argsort(-sizes',
        'np.argsort(sizes',
        ('data/packed_source_test.py', '-k', 'first_fit'),
    ),
    Mutation(
        'data/_first_fit.py',
        'if room[node] < size',
        'if room[node] <= size',
        ('data/packed_source_test.py', '-k', 'first_fit'),
    ),
    Mutation(
        'data/templates/_dialog.py',
        'not i or messages[i - 1].role != message.role',
        'not i',
        ('data/templates/render_test.py',),
    ),
    Mutation(
        'data/templates/_google.py',
        'elif not is_last:',
        'elif False:',
        ('data/templates/google_test.py', '-k', 'user_after_answer'),
    ),
    Mutation(
        'evals/_bleu.py',
        'if len(said) != len(wanted)',
        'if len(said) < len(wanted)',
        ('evals/bleu_test.py',),
    ),
    Mutation(
        'quant/_grid.py',
        '.clip(-8, 7)',
        '.clip(-7, 7)',
        ('quant/grid_test.py',),
    ),
    Mutation(
        'optim/_integers.py',
        'return jnp.zeros(param.shape, param.dtype)',
        'return gradient',
        ('train/quantized_train_test.py',),
    ),
    Mutation(
        'variants/_dora.py',
        'm.astype(jnp.float32) / jax.lax.stop_gradient(norm)',
        'm.astype(jnp.float32) / norm',
        ('variants/dora_test.py', '-k', 'constant_norm'),
    ),
    Mutation(
        'variants/_dora.py',
        '(2 * scale * across + scale**2 * within)',
        '(scale * across + scale**2 * within)',
        ('variants/dora_test.py', '-k', 'equals_the_model'),
    ),
    Mutation(
        'jobs/_distributed.py',
        'if not 0 <= index < number',
        'if not 0 <= index <= number',
        ('jobs/distributed_test.py',),
    ),
    Mutation(
        'jobs/_machines.py',
        'if machine_type is not None and machine_type not in machines',
        'if False',
        ('jobs/machines_test.py',),
    ),
    Mutation(
        'nn/_mix.py',
        'if not math.isfinite(weight)',
        'if False',
        ('nn/mix_test.py',),
    ),
    Mutation(
        'nn/_fuse.py',
        'if any(map(_trees.is_lora, _paths(fused)))',
        'if False',
        ('nn/fuse_test.py',),
    ),
    Mutation(
        'nn/branches/_low_rank.py',
        'jax.lax.ragged_dot(low * scale,',
        'jax.lax.ragged_dot(low,',
        ('nn/branches/experts_test.py', '-k', 'equals_dense_maths'),
    ),
    Mutation(
        'gemma4/forward/_router.py',
        "if name == 'pre_ffw_norm'",
        "if name == 'no_norm'",
        ('nn/wrapper/router_fix_test.py',),
    ),
    Mutation(
        'ckpts/restore/_kv_sharing.py',
        'not _has(present_in[i], *_KV)',
        'True',
        ('ckpts/restore/kv_sharing_test.py',),
    ),
    Mutation(
        'ckpts/restore/_policy.py',
        "if plan.missing and missing == 'error'",
        'if False',
        ('ckpts/restore/policy_test.py',),
    ),
    Mutation(
        'ckpts/restore/_policy.py',
        'if in_model and stored and in_model != stored',
        'if False',
        ('ckpts/restore/policy_test.py',),
    ),
    Mutation(
        'ckpts/lora/_fingerprint_differences.py',
        'if old == new or not (old and new)',
        'if True',
        ('ckpts/lora/fingerprint_test.py',),
    ),
    Mutation(
        'host/folders/_new_folder.py',
        'if path.exists() and not overwrite',
        'if False',
        ('runs/export_test.py', '-k', 'exist'),
    ),
    Mutation(
        'host/folders/_commit.py',
        "if commit.state != 'complete'",
        'if False',
        ('host/folders/commit_test.py',),
    ),
    Mutation(
        'host/folders/_leftovers.py',
        'if _is_dead(',
        'if True or _is_dead(',
        ('host/folders/new_folder_test.py',),
    ),
    Mutation(
        'host/_paths.py',
        'if match is None:',
        'if True:',
        ('host/paths_test.py',),
    ),
    Mutation(
        'host/_checksums.py',
        'if shard.replica_id != 0',
        'if False',
        ('host/checksums_test.py',),
    ),
    Mutation(
        'host/_stop_signals.py',
        'if self._interrupts > 1:',
        'if self._interrupts > 2:',
        ('host/stop_signals_test.py', '-k', 'notebook'),
    ),
    Mutation(
        'host/_live_owner.py',
        'if now is None:  # It ended.',
        'if False:',
        ('host/live_owner_test.py',),
    ),
    Mutation(
        'host/_watched.py',
        'os.setpgid(0, 0)',
        'pass',
        ('host/watched_test.py', '-k', 'handed'),
    ),
    Mutation(
        'ckpts/_stoppable.py',
        'if self._asked():',
        'if False:',
        ('ckpts/stoppable_test.py',),
    ),
    Mutation(
        'ckpts/_checkpointer.py',
        'self._run.check_owner()',
        'pass',
        ('ckpts/checkpointer_test.py', '-k', 'was_taken'),
    ),
    Mutation(
        'runs/_places.py',
        'model.clone(quantize=None) if alone else model',
        'model',
        ('runs/called_base_test.py', '-k', 'without_quantising'),
    ),
    Mutation(
        'peft/_expert_tensors.py',
        "if both and parameter != 'down_proj'",
        'if both',
        ('hf/save_peft_test.py',),
    ),
    Mutation(
        'train/_microbatches.py',
        'if not x.ndim or x.shape[0] % num',
        'if not x.ndim',
        ('train/microbatches_test.py',),
    ),
    Mutation(
        'train/_train_step.py',
        'if not is_int or self.num_microbatches < 1',
        'if not is_int',
        ('train/microbatches_test.py',),
    ),
    Mutation(
        'testing/_tokenizer.py',
        'return f"<unused{token_id - 6}>"',
        'return f"<unused{token_id - 5}>"',
        ('testing/tokenizer_test.py',),
    ),
    Mutation(
        'tpu/_advice.py',
        'if 0 < batch < plan.batch',
        'if 0 < batch',
        ('tpu/advice_test.py',),
    ),
    Mutation(
        'data/_text_task.py',
        'starts = range(0, len(text), length)',
        'starts = range(0, len(text), length + 1)',
        ('data/text_task_test.py', '-k', 'split'),
    ),
    Mutation(
        'data/sources/_jsonl_rows.py',
        "np.searchsorted(blank, index, side='right')",
        "np.searchsorted(blank, index, side='left')",
        ('data/sources/files_test.py', '-k', 'no_objects or by_its_index'),
    ),
    Mutation(
        'data/sources/_passed_transforms.py',
        'return _has_passed(element) or self._transform.filter(element)',
        'return not _has_passed(element) and self._transform.filter(element)',
        ('data/sources/passed_transforms_test.py',),
    ),
    Mutation(
        'data/reports/_counts.py',
        'return [i * number // most for i in range(most)]',
        'return range(most)',
        ('data/reports/show_command_test.py', '-k', 'evenly'),
    ),
    Mutation(
        'host/_escapes.py',
        "'[\\0-\\x08\\x0b-\\x1f",
        "'[\\0-\\x08\\x0b-\\x1a",
        ('host/escapes_test.py',),
    ),
    Mutation(
        'servers/_forms.py',
        'lora.b if own == alpha else lora.b * np.float32(own / alpha)',
        'lora.b',
        ('servers/forms_test.py', '-k', 'product_is'),
    ),
    Mutation(
        'servers/_forms.py',
        'if x.name in both',
        'if x.name not in both and x.name.endswith(_KEYS)',
        ('servers/forms_test.py', '-k', 'values_beside'),
    ),
    Mutation(
        'peft/_peft_modules.py',
        'np.array_equal(own[name], others[name])',
        'own[name].shape == others[name].shape',
        ('servers/forms_test.py', '-k', 'no_copy'),
    ),
    Mutation(
        'servers/_vllm.py',
        "- adapter.layers_with('v_proj')",
        "& adapter.layers_with('v_proj')",
        ('servers/lint_test.py', '-k', 'says'),
    ),
    Mutation(
        'hf/weights/_config_files.py',
        'if (theirs[key] or None) != (made[key] or None)',
        'if type(theirs[key]) is not type(made[key])',
        ('hf/weights/config_files_test.py', '-k', 'another_model'),
    ),
    Mutation(
        'hf/_save_mlx.py',
        "f'{name}.lora_a': lora.a.swapaxes(1, 2)",
        "f'{name}.lora_a': lora.a.swapaxes(1, 2)[::-1]",
        ('hf/save_mlx_test.py', '-k', 'experts'),
    ),
    Mutation(
        'nn/_mix_methods.py',
        'np.maximum(agrees.sum(0), 1)',
        'len(arrays)',
        ('nn/mix_methods_test.py', '-k', 'peft'),
    ),
)


def check(mutation: Mutation) -> None:
  """Checks that a mutation can be applied.

  Raises:
    ValueError: Its old text does not stand in its file exactly once.
  """
  path = _ROOT / 'gemma4_lora' / mutation.file
  count = path.read_text().count(mutation.old) if path.exists() else 0
  if count != 1:
    raise ValueError(f'{mutation.file} has {mutation.old!r} {count} times.')


def is_caught(mutation: Mutation, copy: pathlib.Path) -> bool:
  """Returns whether a test fails.

  Args:
    mutation: The fault.
    copy: A copy of the repository, restored afterwards.

  Raises:
    RuntimeError: The tests did not run.
  """
  path = copy / 'gemma4_lora' / mutation.file
  text = path.read_text()
  path.write_text(text.replace(mutation.old, mutation.new))
  files = [f'tests/{x}' if x.endswith('.py') else x for x in mutation.tests]
  try:
    done = subprocess.run(
        [*(sys.executable, '-m', 'pytest', '-x', '-p', 'no:xdist'), *files],
        cwd=copy,
        env=os.environ | {'PYTHONPATH': os.fspath(copy)},
        capture_output=True,
        text=True,
        check=False,
    )
  finally:
    path.write_text(text)
  if done.returncode not in (0, _FAILED):
    raise RuntimeError(f'{files}: pytest did not run.\n{done.stdout[-2000:]}')
  return done.returncode == _FAILED


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--only', type=int, help='Number of one mutation.')
  only = parser.parse_args().only
  for mutation in ALL:
    check(mutation)
  numbers = range(len(ALL)) if only is None else [only]
  unseen = 0
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / 'copy'
    git = ('git', '-C', os.fspath(_ROOT), 'worktree')
    subprocess.run([*git, 'add', '--detach', '-q', copy], check=True)
    try:
      for number in numbers:
        caught = is_caught(ALL[number], copy)
        unseen += not caught
        word = 'caught' if caught else 'NOT CAUGHT'
        print(f'{number:2} {ALL[number].file}: {word}', flush=True)
    finally:
      subprocess.run([*git, 'remove', '--force', copy], check=True)
  sys.exit(unseen > 0)


if __name__ == '__main__':
  main()
