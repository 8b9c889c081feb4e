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
  `kv_einsum` has two pairs, for k and for v. The base parameters stand where
  `model.init` puts them without LoRA, and the LoRA leaves beside them:

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
  `gm.text.ChatSampler`, `gm.text.Gemma4Sampler`. Around 26B_A4B it also mends
  the router of gemma 4.0.1, see `g4.nn.RouterFix`.

  Attributes:
    rank: Rank of the branches.
    model: A `gm.nn.Gemma4_...`.
    alpha: Numerator of the branch's scale, `alpha / rank`. Default: `rank`,
      hence scale 1.
    targets: What to adapt, see `g4.targets`: `'attention'`, `['q', 'v']`,
      `[g4.targets.mlp(rank=4), 'text']`, ... Default: every live linear of the
      text tower but experts and the router.
    dropout: Rate of dropout on the branch's input, while training only (rng
      stream `dropout`, which Kauldron provides).
    use_rslora: Scale by `alpha / sqrt(rank)` (https://arxiv.org/abs/2312.03732).
    use_dora: Train a magnitude per output feature beside A and B
      (https://arxiv.org/abs/2402.09353): `lora.<projection>.m`, float32 and of
      the shape of the projection's output. Not on experts. It starts at the
      norms of the base weight, to which `g4.ckpts.SkipLoRA4` and
      `g4.ckpts.PartialLoad` set it again after they restored the base.
    init_lora_weights: How A and B start, by PEFT's names: `'default'`, `'gaussian'`,
      `'orthogonal'`, `'pissa'` (https://arxiv.org/abs/2404.02948; with a
      randomised SVD for size: `'pissa_niter_16'`) or `'olora'`
      (https://arxiv.org/abs/2406.01775). Step 0 is the base model with all of
      them. The last three take A and B from the restored base, which changes in
      turn: they need `g4.ckpts.SkipLoRA4(wrapped=..., model=...)`, or
      `g4.nn.init_from_base`, and are NaN before. Those three not on experts.
      `'loftq'` (https://arxiv.org/abs/2310.08659; `'loftq_niter_16'`) starts
      from what `quantize=` loses of the base, by the same `SkipLoRA4`.
    modules_to_save: Parts of the base to train in full, named as in `targets`;
      norms, embeddings and scalars too, see `g4.targets`: `'norms'`,
      `['final_norm', g4.targets.Rule('q', layers=-1)]`. What is trained is a
      copy, `final_norm.lora.scale` or `layer_34.attn.q_einsum.lora.q.w`, and
      starts as the base. Linears among them get no A and B.
    quantize: How the frozen base is held: formats of `g4.quant`, each for some
      parts of it, or the name of one, such as `'int4'`. None: as released. A
      quantised weight is codes and scales, `layer_0.attn.q_einsum.w.codes`; it
      is dequantised where it is used, and once more in the backward pass.
      `g4.ckpts.SkipLoRA4` and `g4.ckpts.PartialLoad` quantise what they read.
    dtype: Floating dtype in which A, B and copies are kept. They are cast to
      the activation's and the base's dtype in the forward pass.
    logits_in_training: Whether the output has `logits` in a training step of
      Kauldron's. False: `preds.logits` is None there, and `preds.head` is what
      `g4.losses` take in their place, which has a few hundred MB less per
      thousand tokens. Evaluators and samplers get logits in any case, and
      evaluators `preds.head` too.
    remat: What the backward pass recomputes. `'none'`: nothing. `'block'`: all
      of a block, from its input. `'attention'`: the same, but attention's
      output is kept, so that attention itself is not computed again; not with
      `attention='gemma'`. `'dots'`: norms and activation functions alone, the
      outputs of linears being kept. Numbers stay the same.
    attention: `'gemma'`: as gemma computes it, with an array of queries by keys
      for each head. `'blockwise'`: in blocks of 512 by 512, and not those that
      are out of the window or behind the query; scores in float32. `'splash'`:
      the same by JAX's TPU kernel, which keeps scores on the chip; its backward
      pass computes the forward one once more. Elsewhere than on TPU, in
      float64, for heads whose width is no multiple of 128, masks that are not
      causal and padding between tokens it is `'blockwise'`; what padding itself
      attends to is another. Only without a cache; samplers use gemma's.
    scan_layers: Whether layers that are alike are traced and compiled once, and
      run in a loop: the same numbers after a fraction of the compile time. Each
      pass of a loop copies its layer's weights. What modules within the blocks
      `sow` is lost, and dropout draws other masks. Only without a cache.
    positions: Key of the positions, i32 `[*B, L]`, for rows of several
      conversations as `g4.data.PackedSource` makes them: `'batch.positions'`.
      Where they restart at 0 another conversation begins, and attention does not
      cross, in layers of all kinds.
    with_reference: Whether the output of Kauldron's steps and evaluators has
      `reference` too: what the model gives with LoRA off, for losses of
      preferences (`g4.losses.DpoLoss`, `gm.losses.DpoLoss`). It takes another
      forward pass, and no other weights. Not where the base itself changes, of
      PiSSA and OLoRA.
    enabled: False: the same parameters with LoRA off, for evaluators and
      samplers, `model.clone(enabled=False)`. What LoRA trained, copies of
      `modules_to_save` included, is there and is not used. Not for training,
      and not where the base itself changes.
    verbose: If True, logs each adapted projection.

  Raises:
    ValueError: On construction, for a rank that is no positive integer, a
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

  def __post_init__(self):
    _rule.check_rank(self.rank)
    _rule.check_dropout(self.dropout)
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
    """What is added to each linear, and which leaves that takes."""
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
          'g4.nn.LoRA: modules_to_save= trains in full all that targets= names:'
          ' there is nothing left for LoRA. Take some linears out of'
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
    """How each quantised leaf of the base is, by its dotted path."""
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
