"""Kernel classes: the kind of work of an operator, by the name under which torch.profiler records it."""

import re
from typing import Literal, get_args

KernelClass = Literal[
    "matrix products",
    "attention",
    "normalisation",
    "activation functions",
    "element-wise and sums",
    "copies and casts",
    "optimizer",
    "other",
]
KERNEL_CLASSES: tuple[KernelClass, ...] = get_args(KernelClass)
FUSED = re.compile(r"(?:cpp|triton_[a-z]+)_fused_+(.*)")  # torch.compile names a kernel by the operators in it
RULES: tuple[tuple[KernelClass, str], ...] = (  # the first that matches decides
    ("other", r"^(cuda|autograd::|torch|compiled|##|\(|profilerstep)|^\w+backward\d*$"),  # not the operators inside
    ("attention", r"scaled_dot_product|attention|softmax|flash_|fmha|flex_|^aten::_*(bmm|baddbmm)$"),
    ("normalisation", r"layer_?norm|batch_?norm|group_?norm|rms_?norm"),
    ("activation functions", r"gelu|relu|silu|tanh|sigmoid"),
    ("optimizer", r"adam|optimizer\.|foreach_(?!copy)|vector_norm|_amp_"),
    ("matrix products", r"triton_(tem|mm|bmm)|cpp_\w*gemm"),  # templates of torch.compile
    ("matrix products", r"^aten::_*(mm|addmm|linear|matmul|addmv|mv|dot|einsum|scaled_mm)$"),
    ("matrix products", r"^(?!.*_fused_).*(gemm|convol|mkldnn|onednn|product)"),
)
MOVING = (
    "copy clone contiguous to cat stack fill zero gather scatter foreach index put impl roll pad constant nd pixel "
    "shuffle unshuffle embedding repeat interleave masked reflection pad2d pin memory backward"
)
IDLE = (  # work on no values, or on few
    "view reshape as strided transpose t permute expand slice select unbind split with sizes unsqueeze squeeze unsafe "
    "alias empty like new resize detach narrow unfold lift fresh item local scalar dense random rand randn uniform "
    "normal bernoulli sort argsort arange set is nonzero result type flatten chunk zeros ones full broadcast clamp"
)
MOVING_WORDS, IDLE_WORDS = set(MOVING.split()), set(IDLE.split())


def class_of(name: str) -> KernelClass:
    """The class of an operator or of a kernel.

    A fused kernel can do several things. It counts as attention, normalisation, an activation function or the
    optimizer if it does one of them, in this order; as a copy if it only moves data; else as element-wise.
    """
    low = name.lower().rstrip("_")
    for kernel_class, pattern in RULES:
        if re.search(pattern, low):
            return kernel_class
    fused = FUSED.search(low)
    if not fused and not low.startswith("aten::"):
        return "other"
    words = set(re.findall(r"[a-z]+[a-z0-9]*", fused[1] if fused else low.removeprefix("aten::")))
    if words and not words <= MOVING_WORDS | IDLE_WORDS:
        return "element-wise and sums"
    return "copies and casts" if fused or words & MOVING_WORDS else "other"
