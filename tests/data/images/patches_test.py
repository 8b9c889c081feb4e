"""Tests of images in conversations, and of batches that mix them with text."""

import dataclasses
import io

from flax import linen as nn
from gemma import peft
from gemma.gm.nn.gemma4.vision import _preprocessing
from gemma.gm.vision import _token_utils
import jax
import jax.numpy as jnp
from kauldron import kd
from kauldron import kontext
import numpy as np
from PIL import Image
import pytest

from gemma4_lora import g4
from gemma4_lora.gemma4.forward import _patch_mask
from tests.lib import multimodal
from tests.lib import random_params

_PATCH = 4


@pytest.fixture(name='task', scope='module')
def _task(tmp_path_factory):
  path = tmp_path_factory.mktemp('tokenizer') / 'full.model'
  return g4.data.ChatTask(
      layout='messages',
      in_images='images',
      tokenizer=g4.testing.make_tokenizer(path, vocab_size=262144),
      max_length=48,
      max_images=2,
      max_soft_tokens=4,
      patch_size=_PATCH,
  )


def _image(height, width):
  rng = np.random.default_rng(height)
  return rng.integers(0, 256, (height, width, 3), np.uint8)


def _row(text, images):
  return {
      'messages': [
          {'role': 'user', 'content': text},
          {'role': 'assistant', 'content': 'A cat.'},
      ],
      'images': images,
  }


def _rows():
  return [
      _row('Look: <|image|> and <|image|>?', [_image(24, 24), _image(12, 36)]),
      _row('What is <|image|>?', Image.fromarray(_image(24, 12))),
      _row('Hello.', None),
  ]


def test_patches_and_tokens_are_those_of_gemmas_samplers(task):
  images = _rows()[0]['images']
  out = task.map(_rows()[0])
  patches, positions, counts = _preprocessing.preprocess_and_patchify(
      images, patch_size=_PATCH, max_soft_tokens=4
  )
  assert counts == [4, 3]
  got = out['images']
  np.testing.assert_allclose(got.patches.reshape(patches.shape), patches)
  np.testing.assert_array_equal(
      got.positions_xy.reshape(positions.shape), positions
  )
  prompt = dataclasses.replace(task, sampling=True).map(_rows()[0])['input']
  tokens = task.tokenizer.encode(prompt, add_bos=True)
  expected = _token_utils.add_variable_extra_tokens_for_images(
      np.asarray([tokens]), soft_token_counts=counts
  )[0]
  np.testing.assert_array_equal(out['input'][: len(expected)], expected)
  assert (out['input'] == -2).sum() == 7
  trained = out['target'][out['loss_mask']]
  assert task.tokenizer.decode(trained) == 'A cat.<turn|>'
  assert out['target'].min() == 0


def test_parts_of_type_image_are_places_too(task):
  row = _rows()[1]
  row['messages'][0]['content'] = [
      {'type': 'text', 'text': 'What is '},
      {'type': 'image'},
      {'type': 'text', 'text': '?'},
  ]
  got, wanted = task.map(row), task.map(_rows()[1])
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


def test_images_stay_beside_prompts_that_are_sampled(task):
  for row in _rows():
    got = dataclasses.replace(task, sampling=True).map(row)
    assert set(got) == {'input', 'target', 'images'}
    wanted = task.map(row)['images']
    jax.tree.map(np.testing.assert_array_equal, got['images'], wanted)


def test_encoded_files_and_what_a_person_sees(task):
  """A photo of a phone: stored on its side, turned by EXIF."""
  exif = Image.Exif()
  exif[0x0112] = 6
  file = io.BytesIO()
  stored = np.rot90(_image(24, 12))
  Image.fromarray(stored).save(file, format='PNG', exif=exif)
  entry = {'bytes': file.getvalue(), 'path': None}
  for images in (entry, [entry], np.array([entry]), file.getvalue()):
    got = task.map(_row('What is <|image|>?', images))
    jax.tree.map(np.testing.assert_array_equal, got, task.map(_rows()[1]))


def test_a_damaged_image_is_a_malformed_row(task):
  lenient = dataclasses.replace(task, max_malformed=1)
  assert lenient.map(_row('<|image|>', b'no image')) is None
  ((reason, _),) = lenient.malformed.reasons.items()
  assert reason == "Field 'images' has an image that cannot be read"


def test_a_batch_of_images_and_text_has_the_logits_of_each_alone(task):
  """Two images of other sizes, one, and none; the last as without the tower."""
  dataset = kd.data.py.DataSource(
      data_source=_rows(),
      shuffle=False,
      num_epochs=1,
      batch_size=3,
      num_workers=0,
      transforms=[task],
  )
  (batch,) = dataset
  # The tiny model has other ids: of 1024.
  batch['input'] = np.where(batch['input'] > 1000, 7, batch['input'])
  base = multimodal.base('Gemma4_31B', images='batch.images', dtype=jnp.float32)
  model = g4.nn.LoRA(rank=2, targets=['text', 'vision'], model=base)
  original, lora = peft.split_params(random_params.with_towers(model))
  # With B = 0 the base, as gemma computes it, says what is right; padding
  # patches aside, which gemma attends to.
  params = peft.merge_params(original, jax.tree.map(jnp.zeros_like, lora))
  kwargs = kontext.resolve_from_keyed_obj({'batch': batch}, model)
  together = jax.jit(model.apply)({'params': params}, **kwargs).logits

  @jax.jit
  def alone(*args, **kwargs):
    with nn.intercept_methods(_patch_mask.exclude_padding()):
      return base.apply(*args, **kwargs)

  for i, counts in enumerate([(4, 3), (2, 1)]):
    one = jax.tree.map(lambda x, i=i: x[i : i + 1], kwargs)
    one['images'] = dataclasses.replace(one['images'], soft_token_counts=counts)
    logits = alone({'params': original}, **one).logits
    live = batch['input'][i] != 0
    np.testing.assert_allclose(
        together[i][live], logits[0][live], rtol=1e-3, atol=1e-3
    )
  text = alone({'params': original}, kwargs['tokens'][2:]).logits
  live = batch['input'][2] != 0
  np.testing.assert_allclose(
      together[2][live], text[0][live], rtol=1e-3, atol=1e-3
  )


@pytest.mark.parametrize(
    'row, match',
    [
        (
            _row('<|image|>', [_image(8, 8)] * 2),
            "'images' has 2 images, and the conversation places for 1",
        ),
        (_row('<|image|>', None), "'images' has 0 images"),
        (
            _row('<|image|>' * 3, [_image(8, 8)] * 3),
            'has 3 images, and max_images=2',
        ),
        (
            _row('<|image|>', np.zeros((8, 8, 3))),
            r'uint8 \[H, W, 3\] or of PIL, .* Got: float64 \[8, 8, 3\]',
        ),
    ],
)
def test_images_that_do_not_fit_are_an_error(row, match, task):
  with pytest.raises(ValueError, match=match):
    task.map(row)


def test_a_vocabulary_without_images_is_an_error(task):
  tiny = dataclasses.replace(task, tokenizer=g4.testing.Gemma4Tokenizer())
  with pytest.raises(ValueError, match='it has no token for images'):
    tiny.map(_rows()[0])


def test_images_that_nobody_reads_are_an_error(task):
  for sampling in (False, True):
    blind = dataclasses.replace(task, in_images=None, sampling=sampling)
    with pytest.raises(ValueError, match='has 2 images. Set `in_images=`'):
      blind.map(_rows()[0])
  with pytest.raises(ValueError, match='with images are not packed'):
    g4.data.PackedSource(data_source=_rows(), transforms=[task])
