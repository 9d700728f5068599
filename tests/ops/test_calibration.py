"""Calibration: bins and their error by hand; tests/evaluation/metrics compares it with torchmetrics."""

import numpy as np
import pytest

from mim.ops.calibration import calibration_error, calibration_of


def test_calibration_puts_answers_into_bins_by_hand():
    confidence, right = np.array([0.05, 0.06, 0.51, 0.52, 1.0]), np.array([1, 0, 1, 1, 0])
    calibration = calibration_of(confidence, right)
    assert calibration.counts_B.tolist() == [2, 0, 0, 0, 0, 0, 0, 2, *[0] * 6, 1]
    assert calibration.accuracy_B[[0, 7, 14]].tolist() == [0.5, 1.0, 0.0]
    assert calibration.confidence_B[[0, 7, 14]].tolist() == pytest.approx([0.055, 0.515, 1.0])
    assert calibration.error == pytest.approx((2 * 0.445 + 2 * 0.485 + 1) / 5)
    assert calibration_error(confidence, right, np.ones((5, 1))).item() == pytest.approx(calibration.error)
