"""Linear: pooled tokens, a norm and one linear layer.

Shapes: B batch, D width, K outputs.
"""

from typing import Literal

from torch import Tensor, nn

from mim.io.checks import at_least
from mim.ops.truncated_normal import trunc_normal_
from mim.readouts.base import Readout
from mim.structures import EncoderSpec, Features, Pool


class Linear(Readout, name="linear"):
    """The readout of both papers' fine-tunings, and of a linear probe.

    Source: MAE, main_finetune.py (mean, layer, 2e-5) and main_linprobe.py (class, batch, 0.01), which are the defaults
    of TASK finetune and of TASK probe; SimMIM, main_finetune.py (0.02 for Swin, 2e-5 for ViT). Differs from: in a
    probe, `mean` averages the tokens after the encoder's norm; MAE normalises the mean of the tokens instead.

    Args:
        pool: `mean` of the patch tokens, the `class` token, or `both`, concatenated.
        norm: between pooling and the linear layer: a `layer` norm that is trained, a `batch` norm without weights, or
            `none`.
        init_std: standard deviation of the linear layer's initial weights.
    """

    def __init__(
        self,
        encoder: EncoderSpec,
        outputs: int,
        *,
        pool: Pool = "mean",
        norm: Literal["layer", "batch", "none"] = "layer",
        init_std: float = 2e-5,
    ):
        super().__init__(encoder, outputs)
        at_least("READOUT", 0, init_std=init_std)
        if pool != "mean" and not encoder.num_prefix:
            raise ValueError(f"READOUT.pool is {pool}, and this encoder has no class token: use mean")
        self.pool = self.reads = pool
        width = encoder.width * (2 if pool == "both" else 1)
        self.norm: nn.Module = nn.Identity()
        if norm == "layer":
            self.norm = nn.LayerNorm(width, eps=1e-6)
        elif norm == "batch":
            self.norm = nn.BatchNorm1d(width, affine=False, eps=1e-6)
        self.linear = nn.Linear(width, outputs)
        nn.init.zeros_(self.linear.weight)
        if init_std:
            trunc_normal_(self.linear.weight, init_std)
        nn.init.zeros_(self.linear.bias)

    @property
    def title(self) -> str:
        return f"{self.name}, {self.pool} pooling"

    def forward(self, features: Features) -> Tensor:
        return self.linear(self.norm(features.pooled(self.pool)))
