"""Kinds of operations in a profile: which ATen operation is arithmetic, which belongs to a layer, which moves data."""

from __future__ import annotations

import re
from collections.abc import Sequence

CONVOLUTION, CONVOLUTION_BACKWARD, PRODUCT = "convolution", "convolution backward", "matrix product"
NORM, ACTIVATION, POOLING = "normalisation", "activation, softmax", "pooling, maxima over a dimension"
ELEMENTWISE, COPY, REDUCTION, OTHER, OUTSIDE = (
    "other element-wise", "copy, cast, layout", "reduction", "other operations", "outside operations"
)  # fmt: skip
OWN_KINDS = {
    CONVOLUTION_BACKWARD: r"\w*conv\w*_backward\w*",
    CONVOLUTION: r"\w*conv(olution|\d|_d)\w*",
    PRODUCT: r"mm|bmm|addmm|baddbmm|mv|addmv|dot|matmul|linear|_addmm_activation|einsum|_scaled_dot_product\w*",
}
"""Whatever these are called by, they are arithmetic; regular expressions for ATen names, the first that fits."""
CALLERS = {
    NORM: r"(Native|Cudnn|Miopen|Masked)?(BatchNorm|LayerNorm|GroupNorm)\w*",
    ACTIVATION: r"(Attention|(Log)?Softmax|Gelu|Relu|Silu|Threshold|Sigmoid|Tanh|Hardtanh|Hardswish|LeakyRelu)"
    r"\w*Backward\w*",
    POOLING: r"(Amax|Amin|Max|MaxPool|AvgPool|AdaptiveAvgPool)\w*Backward\w*",
}
"""Nodes of the autograd graph: what they call without a kernel of its own belongs to their kind."""
KINDS = {
    NORM: r"\w*(batch|layer|group)_norm\w*",
    ACTIVATION: r"\w*softmax\w*|\w*(gelu|relu|silu|threshold|sigmoid|tanh|hardtanh|hardswish)(_|_backward\w*)?",
    POOLING: r"\w*pool\w*|amax|amin|max|min|evenly_distribute_backward",
    COPY: r"copy_|clone|_to_copy|contiguous|cat|stack|_?index\w*|fill_|zero_|zeros\w*|ones\w*|constant_pad\w*|repeat\w*"
    r"|(_unsafe_)?view|_?reshape\w*|t|transpose|permute|as_strided_?|unflatten|flatten|select\w*|slice\w*|unbind|split\w*"
    r"|squeeze|unsqueeze|detach|alias|resolve_\w+|expand\w*|nonzero\w*|full\w*|new_\w*|empty\w*|gather|scatter\w*|roll"
    r"|resize_",
    REDUCTION: r"sum|mean|var|var_mean|\w*norm|any|all|prod|std",
    ELEMENTWISE: r"(add|sub|rsub|mul|div|pow|neg|exp|log|sqrt|rsqrt|square|abs|sign|where|eq|ne|gt|lt|ge|le|reciprocal"
    r"|clamp\w*|addcmul|addcdiv|masked_fill|erf|erfc|maximum|minimum|lerp|logical_\w+|bitwise_\w+|bernoulli|cos|sin)_?",
}
ORDER = (CONVOLUTION, CONVOLUTION_BACKWARD, PRODUCT, NORM, ACTIVATION, POOLING, ELEMENTWISE, COPY, REDUCTION, OTHER,
         OUTSIDE)  # fmt: skip
COLOURS = ("#1f4e8c", "#3b6fb6", "#7fa8d9", "#c0392b", "#e67e22", "#f1c40f", "#27ae60", "#8e44ad", "#16a085", "#95a5a6",
           "#d9d9d9")  # fmt: skip


def kind_of(operation: str, callers: Sequence[str] = ()) -> str:
    """Kind of an ATen operation (`aten::mul`), given the names of what called it, innermost first."""
    name = operation.removeprefix("aten::")
    for kind, pattern in OWN_KINDS.items():
        if re.fullmatch(pattern, name):
            return kind
    for caller in callers:
        for kind, pattern in CALLERS.items():
            if re.fullmatch(pattern, caller):
                return kind
    for kind, pattern in KINDS.items():
        if re.fullmatch(pattern, name):
            return kind
    return OTHER
