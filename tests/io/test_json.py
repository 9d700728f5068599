"""JSON that is written: standard JSON, whatever a metric came to."""

import json
import math

import numpy as np
import pytest

from mim.io.files import to_json, write_json

ODD = {"loss": math.nan, "best": [1.5, math.inf, {"worst": -math.inf}], "pair": (np.float64("nan"), 2), "none": None}
EXPECTED = {"loss": None, "best": [1.5, None, {"worst": None}], "pair": [None, 2], "none": None}


def test_json_has_null_for_numbers_that_are_not_finite(tmp_path):
    write_json(tmp_path / "metrics.json", ODD)
    assert json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail) == EXPECTED
    assert json.loads(to_json(ODD), parse_constant=pytest.fail) == EXPECTED
    assert math.isnan(ODD["loss"])  # the caller's values stay


def test_json_of_finite_values_is_that_of_the_standard_library():
    content = {"a": [1, 2.5, True, None, "NaN"], "b": {"c": 1e300, "d": -0.0}, "3": []}
    assert to_json(content) == json.dumps(content)
    assert to_json(content, indent=2) == json.dumps(content, indent=2)
