"""Kinds of work: what an operator, a kernel of a GPU, or one that a compiler fused of several is for, by its name."""

import re
from typing import Literal, get_args

Kind = Literal[
    "matrix products",
    "attention",
    "normalisation",
    "activation functions",
    "element-wise and sums",
    "copies and casts",
    "optimizer",
    "other",
]
KINDS: tuple[Kind, ...] = get_args(Kind)

FUSED = re.compile(r"(?:cpp|triton_[a-z]+)_fused_+(.*)")  # as torch.compile names its kernels: by what they stand for
NODE = re.compile(r"\w+backward\d*")  # of the graph of gradients; its operators are told on their own
TEMPLATE = re.compile(r"triton_(tem|mm|bmm)|cpp_\w*gemm")  # its own matrix products

ATTENTION = r"scaled_dot_product|attention|softmax|flash_|fmha|flex_"
NORMALISATION = r"layer_?norm|batch_?norm|group_?norm|rms_?norm"
ACTIVATION = r"gelu|relu|silu|tanh|sigmoid"
OPTIMIZER = r"adam|optimizer\.|foreach_(?!copy)|multi_?tensor|vector_norm|lpnorm|_amp_"
PRODUCTS = r"gemm|gemv|cutlass|cublas|nvjet|xmma|splitk|dgrad|wgrad|cudnn|mkldnn|convol|implicit|cask_|onednn|product"
COPIES = r"copy|memcpy|memset|cat_?array|fill|gather|scatter|index|roll_|reorder|nchwtonhwc|nhwctonchw"
SUMS = r"elementwise|reduce|sum|mean|loss|norm|where|pow|mul|add|div"

PLAIN_PRODUCTS = {"mm", "addmm", "linear", "matmul", "addmv", "mv", "dot", "einsum", "_scaled_mm"}
BATCHED_PRODUCTS = {"bmm", "baddbmm"}  # of attention: layers make plain ones
MOVES = {
    *("copy", "clone", "contiguous", "to", "to_copy", "cat", "stack", "fill", "zero", "zeros_like", "ones_like"),
    *("gather", "scatter", "scatter_add", "scatter_reduce", "index", "index_select", "index_put", "index_put_impl"),
    *("roll", "constant_pad_nd", "pixel_shuffle", "pixel_unshuffle", "repeat", "foreach_copy", "embedding"),
    *("select_backward", "slice_backward", "repeat_interleave", "masked_fill", "reflection_pad2d", "pin_memory"),
}  # fmt: skip
HOST = {  # no work on values, or little of it
    *("view", "reshape", "as_strided", "transpose", "t", "permute", "expand", "slice", "select", "unbind", "split"),
    *("unsqueeze", "squeeze", "unsafe_view", "reshape_alias", "empty", "empty_strided", "empty_like", "new_empty"),
    *("new_empty_strided", "resize", "detach", "alias", "narrow", "unfold", "lift_fresh", "item", "local_scalar_dense"),
    *("random", "rand", "randn", "uniform", "normal", "bernoulli", "sort", "argsort", "arange", "set", "is_nonzero"),
    *("result_type", "flatten", "chunk", "zeros", "ones", "full", "new_zeros", "broadcast_to", "expand_as", "view_as"),
}  # fmt: skip
EMPTY_WORDS = {  # of a fused kernel's name, that compute nothing
    *("copy", "to", "clone", "view", "unsafe", "permute", "transpose", "expand", "slice", "select", "unbind", "stack"),
    *("cat", "unsqueeze", "squeeze", "reshape", "t", "as", "strided", "split", "gather", "scatter", "zeros", "new"),
    *("full", "constant", "pad", "nd", "roll", "index", "fill", "detach", "empty", "ones", "like", "backward", "like"),
    *("pixel", "shuffle", "unshuffle", "repeat", "alias", "interleave", "with", "sizes", "lift", "fresh", "clamp"),
}  # fmt: skip


def kind_of(name: str) -> Kind:
    """What it is for. Of a fused kernel the first of these decides, though it may do several: attention, normalisation,
    an activation function, the optimizer; one that only moves data is a copy, any other element-wise.
    """
    if name.startswith("aten::"):
        return _operator(name.removeprefix("aten::"))
    low = name.lower()
    if TEMPLATE.search(low):
        return "attention" if re.search(ATTENTION, low) else "matrix products"
    fused = FUSED.search(low)
    if fused:
        return _fused(fused[1])
    return _kernel(low)


def _operator(name: str) -> Kind:
    base = name.strip("_").split(".")[0]
    if base in BATCHED_PRODUCTS or re.search(ATTENTION, base):
        return "attention"
    if base in PLAIN_PRODUCTS or re.search(PRODUCTS, base):
        return "matrix products"
    found = _named(base)
    if found:
        return found
    if base in MOVES:
        return "copies and casts"
    return "other" if base in HOST else "element-wise and sums"


def _fused(name: str) -> Kind:
    if re.search(ATTENTION, name):
        return "attention"
    words = {word for word in name.split("_") if word and not word.isdigit()}
    return _named(name) or ("copies and casts" if words <= EMPTY_WORDS else "element-wise and sums")


def _kernel(low: str) -> Kind:
    """Of a GPU, or what runs them on the host."""
    if low.startswith(("cuda", "autograd::", "torch", "compiled", "##", "(", "profilerstep")) or NODE.fullmatch(low):
        return "other"
    if re.search(ATTENTION, low):
        return "attention"
    found = _named(low)
    if found:
        return found
    if re.search(PRODUCTS, low):
        return "matrix products"
    if re.search(COPIES, low):
        return "copies and casts"
    return "element-wise and sums" if re.search(SUMS, low) else "other"


def _named(name: str) -> Kind | None:
    """By what operators, fused and other kernels have in common."""
    if re.search(NORMALISATION, name):
        return "normalisation"
    if re.search(ACTIVATION, name):
        return "activation functions"
    return "optimizer" if re.search(OPTIMIZER, name) else None
