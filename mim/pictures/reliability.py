"""A reliability diagram: how often answers of a confidence are right.

Shapes: B bins, H W pixels.
"""

import numpy as np
from torch import Tensor

from mim.ops.calibration import Calibration
from mim.pictures.canvas import pixels

RIGHT, SURE, EVEN, LINE = "#9cc3e6", "#c8551b", "#7a7a7a", "#333333"


def draw_reliability(calibration: Calibration, title: str) -> Tensor:
    """(H, W, 3) uint8: the share of right answers in each bin of confidence, and how many answers each bin has.

    Bars below the diagonal are answers that are surer than they are right. The title also has the expected calibration
    error.
    """
    from matplotlib.figure import Figure  # slow to import, and only pictures need it

    bins = len(calibration.counts_B)
    left_B = np.arange(bins) / bins
    figure = Figure(figsize=(4.2, 5.0), dpi=120, layout="compressed")
    above, below = figure.subplots(2, sharex=True, height_ratios=(3, 1))
    bars = {"width": 1 / bins, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
    accuracy_B, confidence_B = calibration.accuracy_B, calibration.confidence_B
    above.bar(left_B, np.nan_to_num(accuracy_B), color=RIGHT, label="right answers", **bars)
    above.plot([0, 1], [0, 1], color=LINE, linestyle="--", linewidth=1, label="as sure as right")
    above.scatter(confidence_B, accuracy_B, s=14, color=SURE, zorder=3, label="mean of the bin")
    above.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of right answers")
    above.legend(loc="upper left", fontsize=8, frameon=False)
    error = f"expected calibration error {calibration.error:.1%}" if calibration.counts_B.sum() else "no answers"
    above.set_title(f"{title}\n{error}", fontsize=10, parse_math=False)
    below.bar(left_B, calibration.counts_B / max(calibration.counts_B.sum(), 1), color=EVEN, **bars)
    below.set(xlabel="confidence: probability of the answer", ylabel="share of answers", ylim=(0, None))
    return pixels(figure)
