"""gemma's samplers around tiny models."""

from gemma import gm
import numpy as np

from gemma4_lora import g4
from tests.lib import forward


def sampler(model, params, *, cls=gm.text.ChatSampler, **kwargs):
  """Returns a sampler of the tiny tokenizer, with a cache of 64 tokens."""
  kwargs = {
      'tokenizer': g4.testing.Gemma4Tokenizer(),
      'cache_length': 64,
      'max_out_length': 12,
      'pad_length': 16,
  } | kwargs
  return cls(model=model, params=params, **kwargs)


def chat(model, params):
  """Returns what a model says, greedily: text and tokens."""
  chat_sampler = sampler(model, params)
  text = chat_sampler.chat('Good morning', max_new_tokens=8)
  tokens = np.asarray(chat_sampler.last_state.predicted_tokens)
  return text, tokens.tolist()


PROMPT = '<|turn>user\nGood morning<turn|>\n<|turn>model\n'


def sampled(model, params, *, prompt=PROMPT, max_new_tokens=8, **kwargs):
  """Returns the most likely tokens after a prompt, by gemma's sampler."""
  of_gemma = sampler(model, params, cls=gm.text.Gemma4Sampler, **kwargs)
  out = of_gemma.sample(
      prompt, max_new_tokens=max_new_tokens, return_state=True
  )
  tokens = np.asarray(out.state.predicted_tokens[0][:max_new_tokens])
  return [x for x in tokens.tolist() if x != 0]


def greedy(model, params, *, prompt=PROMPT, max_new_tokens=8, tokenizer=None):
  """Returns the same, by whole forward passes without a cache."""
  tokenizer = tokenizer or g4.testing.Gemma4Tokenizer()
  stop = (tokenizer.special_tokens.EOS, tokenizer.special_tokens.END_OF_TURN)
  tokens = tokenizer.encode(prompt, add_bos=True)
  new = []
  while len(new) < max_new_tokens and not set(stop) & set(new):
    # Padded to one length: one compilation.
    padded = np.zeros((1, 40), np.int32)
    padded[0, : len(tokens) + len(new)] = [*tokens, *new]
    logits = forward.logits(model, params, padded)
    new.append(int(np.argmax(logits[0, len(tokens) + len(new) - 1])))
  return new
