"""LoRA around a Gemma 4 model."""

from collections.abc import Mapping
import dataclasses
from typing import Any

import jax.numpy as jnp
from kauldron import kontext

from gemma4_lora import variants
from gemma4_lora.gemma4 import _leaves
from gemma4_lora.gemma4 import _linears
from gemma4_lora.nn import _forward
from gemma4_lora.nn import _validate
from gemma4_lora.nn.attention import _attention
from gemma4_lora.nn.blocks import _remat
from gemma4_lora.nn.branches import _init
from gemma4_lora.quant import _by_leaf
from gemma4_lora.quant import _formats
from gemma4_lora.targets import _full
from gemma4_lora.targets import _resolve
from gemma4_lora.targets import _rule

_FLAGS = (
    'use_rslora',
    'use_dora',
    'logits_in_training',
    'scan_layers',
    'with_reference',
    'enabled',
    'verbose',
)


class LoRA(_forward.Forward):
  """Adapts chosen linears of a Gemma 4 model (https://arxiv.org/abs/2106.09685).

  ```python
  model = g4.nn.LoRA(
      rank=16,
      alpha=32,
      model=gm.nn.Gemma4_E2B(tokens='batch.input'),
  )
  ```

  Each logical projection has an A and a B of its own, as in PEFT: gemma's
  `kv_einsum` has two pairs, for k and for v. The base parameters keep the paths
  that `model.init` gives them without LoRA. The LoRA leaves are beside them:

  ```python
  {'layer_0': {
      'attn': {
          'kv_einsum': {
              'w': bf16[2, K, D, H],
              'lora': {
                  'k': {'a': f32[D, rank], 'b': f32[rank, K, H]},
                  'v': {'a': f32[D, rank], 'b': f32[rank, K, H]},
              },
          },
          ...
      },
      'mlp': {
          'gating_einsum': bf16[2, F, D],
          'linear': bf16[F, D],
          'lora': {'gate': {...}, 'up': {...}, 'down': {...}},
      },
  }}
  ```

  Each routed expert has an A and a B of its own: those of `expert_down` are
  `f32[E, F, rank]` and `f32[E, rank, D]`, at `layer_0.mlp.linear.lora`.

  A starts Kaiming-uniform, `U(-1, 1) / sqrt(fan_in)` as PEFT's does, and B at
  zero. The branch is `scale * (x @ A) @ B`.

  Works wherever upstream takes a model: `kd.train.Trainer`,
  `gm.text.ChatSampler`, `gm.text.Gemma4Sampler`. It also corrects the router of
  26B_A4B and the padding of images, see `g4.nn.RouterFix`.

  Attributes:
    rank: Rank of the branches.
    model: A `gm.nn.Gemma4_...`.
    alpha: Numerator of the branch's scale, `alpha / rank`. Default: `rank`,
      hence scale 1.
    targets: What to adapt, see `g4.targets`: `'attention'`, `['q', 'v']`,
      `[g4.targets.mlp(rank=4), 'text']`, ... Default: every linear of the text
      model whose output is used, except experts and the router.
    dropout: Rate of dropout on the branch's input, in training only (rng stream
      `dropout`, which Kauldron provides).
    use_rslora: Scale by `alpha / sqrt(rank)` (https://arxiv.org/abs/2312.03732).
    use_dora: Train a magnitude per output feature beside A and B
      (https://arxiv.org/abs/2402.09353): `lora.<projection>.m`, float32, in the
      shape of the projection's output. Not for experts. It starts at the norms
      of the base weight; `g4.ckpts.SkipLoRA4` and `g4.ckpts.PartialLoad` set it
      to them again after they restore the base.
    init_lora_weights: How A and B start, by PEFT's names: `'default'`, `'gaussian'`,
      `'orthogonal'`, `'pissa'` (https://arxiv.org/abs/2404.02948; with a
      randomised SVD for size: `'pissa_niter_16'`) or `'olora'`
      (https://arxiv.org/abs/2406.01775). With all of them, step 0 computes what
      the base model does. PiSSA and OLoRA take A and B out of the restored
      base, and change the base. A and B have no values until
      `g4.ckpts.SkipLoRA4(wrapped=..., model=...)` or `g4.nn.init_from_base`
      sets them. Not for experts. `'loftq'` (https://arxiv.org/abs/2310.08659;
      `'loftq_niter_16'`) starts from the error of `quantize=`, set by the same
      `SkipLoRA4`.
    modules_to_save: Parts of the base to train in full, named as in `targets`;
      norms, embeddings and scalars too, see `g4.targets`: `'norms'`,
      `['final_norm', g4.targets.Rule('q', layers=-1)]`. A copy is trained,
      `final_norm.lora.scale` or `layer_34.attn.q_einsum.lora.q.w`; it starts at
      the base's values. Linears among them get no A and B.
    quantize: How the frozen base is held: formats of `g4.quant`, each for some
      parts of it, or the name of one, such as `'int4'`. None: as released. A
      quantised weight is codes and scales, `layer_0.attn.q_einsum.w.codes`; it
      is dequantised when it is used, and once more in the backward pass.
      `g4.ckpts.SkipLoRA4` and `g4.ckpts.PartialLoad` quantise what they read.
    dtype: Floating dtype in which A, B and copies are kept. They are cast to
      the activation's and the base's dtype in the forward pass.
    logits_in_training: Whether the output of Kauldron's training step has
      `logits`. False: `preds.logits` is None, and `g4.losses` read `preds.head`
      instead. This saves a few hundred MB per thousand tokens. Evaluators and
      samplers always get logits, and evaluators `preds.head` too.
    remat: What the backward pass recomputes. `'none'`: nothing. `'block'`: a
      whole block, from its input. `'attention'`: the same, except attention,
      whose output is kept; not with `attention='gemma'`. `'dots'`: only norms
      and activation functions; the outputs of linears are kept. Numbers stay
      the same.
    attention: `'gemma'`: gemma's own, with an array of queries by keys for each
      head. `'blockwise'`: in blocks of 512 by 512; blocks outside the window or
      after the query are not computed; scores in float32. `'splash'`: the same
      by JAX's TPU kernel, which keeps scores on the chip; its backward pass
      repeats the forward pass. It falls back to `'blockwise'` on other devices,
      in float64, for heads whose width is not a multiple of 128, for masks that
      are not causal and for padding between tokens. Padding positions attend
      differently. Only without a cache; samplers use gemma's.
    scan_layers: Whether equal layers are traced and compiled once, and run in a
      loop: the same numbers after a fraction of the compile time. Each pass of
      a loop copies its layer's weights. What modules in the blocks `sow` is
      lost, and dropout draws other masks. Only without a cache.
    positions: Key of the positions, i32 `[*B, L]`, for sequences of several
      conversations as `g4.data.PackedSource` makes them: `'batch.positions'`.
      Another conversation begins where they restart at 0; attention does not
      cross, in layers of all kinds.
    with_reference: Whether the output of Kauldron's steps and evaluators also
      has `reference`, the model's output with LoRA off, for losses of
      preferences (`g4.losses.DpoLoss`, `gm.losses.DpoLoss`). It takes another
      forward pass, but no further weights. Not for PiSSA and OLoRA, which
      change the base.
    enabled: False: the same parameters with LoRA off, for evaluators and
      samplers, `model.clone(enabled=False)`. The LoRA leaves, copies of
      `modules_to_save` included, stay and are not used. Not for training, and
      not for PiSSA and OLoRA, which change the base.
    verbose: If True, logs each adapted projection.

  Raises:
    ValueError: On construction, for a rank that is not a positive integer, a
      dropout outside [0, 1), a dtype that is not floating, a model that is not
      Gemma 4 or has LoRA already, a target that matches nothing, or an unknown
      `remat` or `attention`.
  """

  _: dataclasses.KW_ONLY

  rank: int
  alpha: float | None = None
  targets: Any = 'text'
  dropout: float = 0.0
  use_rslora: bool = False
  use_dora: bool = False
  init_lora_weights: str = 'default'
  modules_to_save: Any = ()
  quantize: Any = None
  dtype: Any = jnp.float32
  logits_in_training: bool = True
  remat: str = 'none'
  attention: str = 'gemma'
  scan_layers: bool = False
  positions: kontext.Key | None = None
  with_reference: bool = False
  enabled: bool = True
  verbose: bool = False

  def __new__(cls, *args: Any, **kwargs: Any):
    del args
    _validate.check_words(
        kwargs, known=[f.name for f in dataclasses.fields(cls)]
    )
    return super().__new__(cls)

  def __post_init__(self):
    _rule.check_rank(self.rank)
    if self.alpha is not None:
      _rule.check_alpha(self.alpha)
    _rule.check_dropout(self.dropout)
    _validate.check_flags({x: getattr(self, x) for x in _FLAGS})
    _validate.check_dtype(self.dtype)
    _validate.check_model(self.model)
    object.__setattr__(self, 'targets', _rule.normalize(self.targets))
    modules_to_save = _full.normalize_full(self.modules_to_save)
    object.__setattr__(self, 'modules_to_save', modules_to_save)
    object.__setattr__(
        self, 'quantize', _formats.normalize(self.quantize) or None
    )
    adapted = self.adapted  # A target that matches nothing fails here.
    _init.check(self.init_lora_weights)
    _attention.check(self.attention)
    _remat.check(self.remat, attention=self.attention)
    if self.with_reference or not self.enabled:
      _validate.check_reference(
          self.init_lora_weights,
          setting='with_reference=True' if self.enabled else 'enabled=False',
      )
    if not self.variant.is_branch_alone:
      _validate.check_no_experts(adapted, setting=self.variant.setting)
    _validate.check_init(
        adapted, self.init_lora_weights, use_rslora=self.use_rslora
    )
    _validate.check_quantized(
        self.quantized,
        adapted,
        self.saved,
        init=self.init_lora_weights,
    )
    super().__post_init__()

  def __kontext_keys__(self) -> dict[str, Any]:
    """Keys for Kauldron: of the wrapped model, and of the positions."""
    keys = super().__kontext_keys__()
    if self.positions is not None:
      keys = keys | {'positions': self.positions}
    return keys

  @property
  def variant(self) -> variants.Variant:
    """The LoRA that is added to each linear, and its leaves."""
    return variants.chosen({x: getattr(self, x) for x in variants.ARGUMENTS})

  @property
  def adapted(self) -> tuple[_resolve.Adapted, ...]:
    """The adapted projections, in the order of the forward pass."""
    adapted = _resolve.resolve(
        self.targets,
        _linears.linears(self.model.config),
        rank=self.rank,
        alpha=self.alpha,
        dropout=self.dropout,
        variant=self.variant,
    )
    in_full = {part.row.name for part in self.saved}
    rest = tuple(x for x in adapted if x.row.name not in in_full)
    if not rest:
      raise ValueError(
          'g4.nn.LoRA: modules_to_save= trains in full all that targets= names,'
          ' and leaves nothing for LoRA. Take some linears out of'
          ' modules_to_save=, or add some to targets=.'
      )
    return rest

  @property
  def saved(self) -> tuple[_full.Saved, ...]:
    """The parts of the base that are trained in full."""
    if not self.modules_to_save:
      return ()
    config = self.model.config
    rows = (*_linears.linears(config), *_leaves.leaves(config))
    return _full.resolve_full(self.modules_to_save, rows)

  @property
  def quantized(self) -> Mapping[str, Any]:
    """Encoding of each quantised leaf of the base, by dotted path."""
    if not self.quantize:
      return {}
    return _by_leaf.resolve(self.quantize, self.model.config)

  @property
  def lora_shapes(self) -> dict[str, tuple[int, ...]]:
    """Shape of every LoRA leaf, by its dotted path."""
    shapes = {
        f'{linear.row.lora_path}.{name}': shape
        for linear in self.adapted
        for name, shape in linear.shapes.items()
    }
    return shapes | {part.path: part.shape for part in self.saved}

  def init_cache(self, *, dtype: Any, **kwargs: Any) -> Any:
    """Returns an empty cache, as the model does.

    Args:
      dtype: Dtype of keys and values. gemma's samplers pass the dtype of the
        first parameter. If that is an integer, as of codes, the model's dtype
        is taken instead.
      **kwargs: Other arguments of the model's method.
    """
    if jnp.issubdtype(dtype, jnp.integer):
      dtype = self.model.dtype
    return self.model.init_cache(dtype=dtype, **kwargs)
