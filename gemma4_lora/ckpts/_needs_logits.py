"""Checks that losses and metrics do not read logits that the model omits."""

from typing import Any

from kauldron import kd
from kauldron import kontext

from gemma4_lora import _trees
from gemma4_lora.ckpts.lora import _fingerprint

_OURS = {
    'train_losses': 'g4.losses.SoftmaxCrossEntropyWithIntLabels',
    'train_metrics': 'g4.losses.Accuracy or Perplexity',
}


def check(model: Any, aux: kd.train.Auxiliaries, *, who: str) -> None:
  """Raises if something reads logits that training does not return.

  Args:
    model: The model.
    aux: Losses, metrics and summaries of training.
    who: What asks, for messages.

  Raises:
    ValueError: Something does.
  """
  lora = _fingerprint.find_lora(model)
  if lora is None or lora.logits_in_training:
    return
  for name, group in (
      ('train_losses', aux.losses),
      ('train_metrics', aux.metrics),
      ('train_summaries', aux.summaries),
  ):
    for path, x in _trees.flatten(dict(group)).items():
      if isinstance(x, kd.metrics.SkipIfMissing):
        continue
      keys = [str(key) for key in kontext.get_keypaths(x).values()]
      if not any(key.endswith('preds.logits') for key in keys):
        continue
      instead = ''
      if name in _OURS:
        instead = (
            f' Write {_OURS[name]}(head="preds.head", labels=…, mask=…), or'
        )
      raise ValueError(
          f'{who}: {name}.{_trees.join(path)} reads preds.logits,'
          ' and g4.nn.LoRA(logits_in_training=False) returns none in training.'
          f'{instead or " Set"} logits_in_training=True.'
      )
