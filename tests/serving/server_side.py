# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0",
#   "transformers==5.24.0",
#   "peft==0.21.2",
#   "safetensors==0.8.0",
#   "numpy>=2",
#   # What llama.cpp's converters and llama-cpp-python import.
#   "pyyaml",
#   "requests",
#   "tqdm",
#   "diskcache",
#   "jinja2",
#   "typing-extensions",
# ]
# ///
"""What servers answer, in an environment of their own: `serving_test` runs this.

`tokenizer` writes the first pieces of Gemma 4's own vocabulary as files of
transformers. `llama` and `transformers` write logits and greedy tokens of folders.
"""

import argparse
import ctypes
import json
import os
import pathlib
import subprocess
import sys

import numpy as np


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument('what', choices=['tokenizer', 'llama', 'transformers'])
  parser.add_argument('job', type=pathlib.Path, help='JSON of the arguments')
  args = parser.parse_args()
  job = json.loads(args.job.read_text())
  {'tokenizer': tokenizer, 'llama': llama, 'transformers': by_transformers}[
      args.what
  ](**job)


def tokenizer(source: str, out: str, size: int) -> None:
  """Writes tokenizer.json and tokenizer_config.json.

  Args:
    source: The unpacked package.
    out: Folder to make.
    size: How many pieces.
  """
  # pylint: disable=g-import-not-at-top
  sys.path.insert(0, f'{source}/vendor/llama.cpp/gguf-py')
  import gguf
  import tokenizers

  models = f'{source}/vendor/llama.cpp/models'
  fields = gguf.GGUFReader(f'{models}/ggml-vocab-gemma-4.gguf').fields

  def field(name):
    return fields[f'tokenizer.ggml.{name}'].contents()

  pieces, kinds = field('tokens')[:size], field('token_type')[:size]
  vocabulary = {piece: i for i, piece in enumerate(pieces)}
  merges = [tuple(x.split(' ')) for x in field('merges')]
  made = tokenizers.Tokenizer(
      tokenizers.models.BPE(
          vocab=vocabulary,
          merges=[
              (a, b)
              for a, b in merges
              if a in vocabulary and b in vocabulary and a + b in vocabulary
          ],
          fuse_unk=True,
          byte_fallback=True,
          unk_token='<unk>',
      )
  )
  made.normalizer = tokenizers.normalizers.Replace(' ', '▁')
  made.pre_tokenizer = tokenizers.pre_tokenizers.Split(
      ' ', 'merged_with_previous'
  )
  made.decoder = tokenizers.decoders.Sequence(
      [
          tokenizers.decoders.Replace('▁', ' '),
          tokenizers.decoders.ByteFallback(),
          tokenizers.decoders.Fuse(),
      ]
  )
  tags = [
      tokenizers.AddedToken(piece, normalized=False, special=True)
      for piece, kind in zip(pieces, kinds, strict=True)
      if kind in (gguf.TokenType.CONTROL, gguf.TokenType.USER_DEFINED)
  ]
  made.add_special_tokens(tags)
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  made.save(str(folder / 'tokenizer.json'))
  settings = {
      'tokenizer_class': 'PreTrainedTokenizerFast',
      'bos_token': '<bos>',
      'eos_token': '<eos>',
      'pad_token': '<pad>',
      'unk_token': '<unk>',
      'chat_template': '{{ bos_token }}',
  }
  (folder / 'tokenizer_config.json').write_text(json.dumps(settings))
  if size == len(field('tokens')):
    _check_golden(made, models)


def _check_golden(made, models: str) -> None:
  """Compares with llama.cpp's own lists of tokens."""
  name = f'{models}/ggml-vocab-gemma-4.gguf'
  texts = pathlib.Path(f'{name}.inp').read_text(encoding='utf-8')
  lists = pathlib.Path(f'{name}.out').read_text(encoding='utf-8').splitlines()
  for text, tokens in zip(
      texts.split('\n__ggml_vocab_test__\n'), lists, strict=False
  ):
    got = made.encode(text, add_special_tokens=False).ids
    assert got == [int(x) for x in tokens.split()], text


def llama(source: str, libraries: str, cases: list, out: str) -> None:
  """Converts folders by llama.cpp's converters, and writes what it computes.

  Args:
    source: The unpacked package.
    libraries: The built libraries.
    cases: Each has `folder`, and maybe `adapter`, a PEFT folder; `tokens`; and how
      many to continue with, `more`.
    out: File to write: logits and tokens of each case.
  """
  code = f'{source}/vendor/llama.cpp'
  os.environ['LLAMA_CPP_LIB_PATH'] = libraries
  sys.path.insert(0, source)
  import llama_cpp  # pylint: disable=g-import-not-at-top

  quiet = llama_cpp.llama_log_callback(lambda *_: None)
  llama_cpp.llama_log_set(quiet, ctypes.c_void_p(0))
  answers = {}
  for i, case in enumerate(cases):
    model, adapter = f'{out}.{i}.gguf', None
    _run(f'{code}/convert_hf_to_gguf.py', case['folder'], '--outfile', model)
    if case.get('adapter'):
      adapter = f'{out}.{i}.lora.gguf'
      try:
        _run(
            f'{code}/convert_lora_to_gguf.py',
            *('--base', case['folder'], '--outfile', adapter, case['adapter']),
        )
      except RuntimeError as e:
        answers[f'{i}.error'] = np.asarray(str(e))
        continue
    context = _context(llama_cpp, model, adapter)
    logits = _logits(llama_cpp, context, case['tokens'])
    tokens = list(case['tokens'])
    step = logits
    for _ in range(case['more']):
      tokens.append(int(step[-1].argmax()))
      step = _logits(llama_cpp, context, tokens)
    answers[f'{i}.logits'] = logits
    answers[f'{i}.tokens'] = np.asarray(tokens)
  np.savez(out, **answers)


def _run(script: str, *args: str) -> None:
  command = [sys.executable, script, '--outtype', 'f32', *args]
  done = subprocess.run(command, capture_output=True, text=True, check=False)
  if done.returncode:
    raise RuntimeError(f'{script}: {done.stderr[-2000:]}')


def _context(api, path: str, adapter: str | None):
  """Opens a model: caches of keys and values in float32, no flash attention."""
  settings = api.llama_model_default_params()
  model = api.llama_model_load_from_file(path.encode(), settings)
  assert model, path
  settings = api.llama_context_default_params()
  settings.n_ctx = settings.n_batch = settings.n_ubatch = 512
  settings.type_k = settings.type_v = 0
  settings.flash_attn_type = 0
  context = api.llama_init_from_model(model, settings)
  if adapter is not None:
    lora = api.llama_adapter_lora_init(model, adapter.encode())
    assert lora, adapter
    loras = (type(lora) * 1)(lora)
    assert not api.llama_set_adapters_lora(
        context, loras, 1, (ctypes.c_float * 1)(1.0)
    )
  return context


def _logits(api, context, tokens: list) -> np.ndarray:
  """Returns f32[L V]."""
  api.llama_memory_clear(api.llama_get_memory(context), True)
  batch = api.llama_batch_init(len(tokens), 0, 1)
  batch.n_tokens = len(tokens)
  for i, token in enumerate(tokens):
    batch.token[i], batch.pos[i] = token, i
    batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    batch.logits[i] = 1
  assert api.llama_decode(context, batch) == 0
  vocabulary = api.llama_model_get_vocab(api.llama_get_model(context))
  size = api.llama_vocab_n_tokens(vocabulary)
  rows = [
      np.ctypeslib.as_array(
          api.llama_get_logits_ith(context, i), (size,)
      ).copy()
      for i in range(len(tokens))
  ]
  api.llama_batch_free(batch)
  return np.stack(rows)


def by_transformers(cases: list, out: str) -> None:
  """Writes what transformers and PEFT compute with the folders of `llama`."""
  # pylint: disable=g-import-not-at-top
  import peft
  import torch
  import transformers

  answers = {}
  for i, case in enumerate(cases):
    config = transformers.AutoConfig.from_pretrained(case['folder'])
    auto = transformers.AutoModelForCausalLM
    if hasattr(config, 'text_config'):
      auto = transformers.AutoModelForImageTextToText
    model, info = auto.from_pretrained(case['folder'], output_loading_info=True)
    wrong = {k: sorted(v) for k, v in info.items() if v}
    assert not wrong, wrong
    if case.get('adapter'):
      model = peft.PeftModel.from_pretrained(model, case['adapter'])
    model.eval()
    tokens = torch.tensor([case['tokens']])
    with torch.no_grad():
      answers[f'{i}.logits'] = model(tokens).logits[0].numpy()
      every = model.generate(
          input_ids=tokens,
          attention_mask=torch.ones_like(tokens),
          max_new_tokens=case['more'],
          do_sample=False,
          eos_token_id=-1,
      )
    answers[f'{i}.tokens'] = every[0].numpy()
  np.savez(out, **answers)


if __name__ == '__main__':
  main()
