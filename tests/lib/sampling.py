"""gemma's samplers around tiny models."""

from gemma import gm
import numpy as np

from gemma4_lora import g4


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
