"""Which rule follows the labels through which torch function."""

from __future__ import annotations

from collections.abc import Callable

from compressbench.pruning.channels import (
    rules_elementwise,
    rules_layers,
    rules_movement,
    rules_products,
    rules_reductions,
    rules_reshape,
)
from compressbench.pruning.channels.shadows import Call, Shadows

Rule = Callable[[Shadows, Call], None]

_ELEMENTWISE = """add sub mul div true_divide floor_divide remainder fmod pow float_power maximum
minimum fmax fmin where lerp addcmul addcdiv atan2 hypot copysign heaviside xlogy eq ne lt le gt ge
not_equal equal_to greater less logical_and logical_or logical_xor logical_not bitwise_and
bitwise_or bitwise_xor bitwise_not and or xor invert radd rsub rmul rdiv rtruediv rpow rfloordiv
rmod truediv floordiv mod subtract multiply divide masked_fill clamp clip clamp_min clamp_max
threshold abs absolute neg negative positive exp exp2 expm1 log log2 log10 log1p sqrt rsqrt square
reciprocal sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh sigmoid logit relu relu6
leaky_relu rrelu elu selu celu gelu silu mish softplus softsign tanhshrink softshrink hardshrink
hardtanh hardswish hardsigmoid logsigmoid sign sgn round floor ceil trunc fix frac erf erfc erfinv
isnan isinf isfinite nan_to_num copy tril triu special_expit sinc deg2rad"""
_SAME = """dropout dropout1d dropout2d dropout3d alpha_dropout feature_dropout
feature_alpha_dropout bernoulli zeros_like ones_like full_like empty_like rand_like randn_like
randint_like to type type_as float double half bfloat16 int long bool short contiguous clone detach
cpu cuda requires_grad zero fill uniform normal alias resolve_conj resolve_neg fill_diagonal
_to_copy to_dense"""
_FREE = "new_zeros new_ones new_empty new_full new_tensor"
_MOVED = """permute transpose t swapaxes swapdims movedim moveaxis squeeze unsqueeze repeat
repeat_interleave tile roll flip fliplr flipud rot90 pixel_unshuffle flatten ravel adjoint
atleast_1d atleast_2d atleast_3d tensor_unfold gather take_along_dim diagonal"""
_REDUCED = """mean sum nansum nanmean prod amax amin max min argmax argmin std var std_mean var_mean
norm logsumexp all any median nanmedian count_nonzero aminmax vector_norm topk
kthvalue mode quantile"""
_ALONG = """softmax log_softmax softmin gumbel_softmax cumsum cumprod cummax cummin logcumsumexp
sort argsort normalize"""
_POOLED = """max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d lp_pool1d lp_pool2d
lp_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d
adaptive_max_pool2d adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices
max_pool3d_with_indices fractional_max_pool2d fractional_max_pool3d interpolate upsample
upsample_nearest upsample_bilinear"""
_LAYERS = """linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d"""
_OPAQUE = """multi_head_attention_forward lstm gru rnn_tanh rnn_relu lstm_cell gru_cell
rnn_tanh_cell rnn_relu_cell"""


def _for(names: str, rule: Rule) -> dict[str, Rule]:
    return dict.fromkeys(names.split(), rule)


RULES: dict[str, Rule] = {
    **_for(_ELEMENTWISE, rules_elementwise.elementwise),
    **_for(_SAME, rules_elementwise.same),
    **_for(_FREE, rules_elementwise.free),
    **_for("cat concat concatenate stack", rules_elementwise.joined),
    "setitem": rules_elementwise.assigned,
    **_for(_LAYERS, rules_layers.layer),
    **_for("batch_norm instance_norm", rules_layers.channel_norm),
    "group_norm": rules_layers.group_norm,
    **_for("layer_norm rms_norm", rules_layers.layer_norm),
    "prelu": rules_layers.slope,
    "embedding": rules_layers.embedding,
    **_for(_OPAQUE, rules_layers.opaque),
    **_for(_MOVED, rules_movement.moved),
    **_for("expand expand_as broadcast_to", rules_movement.expanded),
    "pad": rules_movement.padded,
    **_for("chunk split tensor_split unbind", rules_movement.in_pieces),
    "glu": rules_movement.halved,
    "getitem": rules_movement.indexed,
    **_for("narrow select index_select", rules_movement.selected),
    "pixel_shuffle": rules_movement.from_pixels,
    "channel_shuffle": rules_movement.shuffled,
    "unfold": rules_movement.windows,
    "fold": rules_movement.from_windows,
    **_for("T mT H mH data real", rules_movement.turned),
    **_for("view reshape unflatten reshape_as view_as", rules_reshape.reshaped),
    **_for("matmul bmm mm rmatmul", rules_products.matmul),
    **_for("addmm baddbmm", rules_products.added_product),
    "scaled_dot_product_attention": rules_products.attention,
    "einsum": rules_products.einsum,
    **_for(_REDUCED, rules_reductions.reduced),
    **_for(_ALONG, rules_reductions.along),
    **_for(_POOLED, rules_reductions.pooled),
    "local_response_norm": rules_reductions.across_channels,
}
