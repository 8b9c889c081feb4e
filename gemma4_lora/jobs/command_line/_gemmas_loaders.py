"""Explains in one line why gemma's own transforms fail for Gemma 4 under LoRA.

`g4.train.TrainStep` says so before it runs them. Kauldron's train step does not.
"""

import os
import traceback

_LONGEST = 160  # What is shown of another library's message, in characters.
_LOADER = f'gemma{os.sep}gm{os.sep}ckpts{os.sep}'
_LINE = (
    'init_transform=g4.ckpts.SkipLoRA4(wrapped=gm.ckpts.LoadCheckpoint(path='
    'gm.ckpts.CheckpointPath.GEMMA4_…))'
)


def explain(error: BaseException) -> str | None:
  """Returns what to write in the place of `gm.ckpts.SkipLoRA`.

  Args:
    error: What a run has raised.

  Returns:
    None if it comes from elsewhere, or if the checkpoint is not there.
  """
  if isinstance(error, OSError):
    return None
  frames = traceback.extract_tb(error.__traceback__)
  files = [
      x.filename.rpartition(_LOADER)[2]
      for x in frames
      if _LOADER in x.filename and x.name == 'transform'
  ]
  first = next(iter(str(error).splitlines()), '')[:_LONGEST]
  if '_lora.py' in files and 'do not match' in first:
    return (
        f'gm.ckpts.SkipLoRA failed: {first} … It does not know the layouts of'
        f' Gemma 4. Write g4.ckpts.SkipLoRA4 in its place: {_LINE}.'
    )
  # It frees what it replaces, and stumbles over that as it says what is missing.
  knows_no_lora = 'has been deleted' in first or 'lora' in str(error)
  if '_checkpoint.py' in files and knows_no_lora:
    return (
        'init_transform=gm.ckpts.LoadCheckpoint(…) would restore the LoRA'
        ' leaves, too, which no released checkpoint has. Wrap it in SkipLoRA4:'
        f' {_LINE}.'
    )
  return None
