"""EvaluationResult: the values as a dict and as a table."""

import json

from PIL import Image

from mim.results import EvaluationResult

VALUES = {"checkpoint": "runs/a/last.pt", "step": 1200, "k": 20, "val/top1": 0.5, "val/top1_interval": [0.25, 0.75]}


def test_evaluation_is_a_dict_and_shows_values_with_intervals_and_pictures(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "sheet.png")
    values = {**VALUES, "val/by_class": {"cat": 0.25, "dog": 0.75}, "pictures": [str(tmp_path / "sheet.png")]}
    result = EvaluationResult("classify", values)
    assert json.loads(json.dumps(result)) == values
    assert repr(result) == "<EvaluationResult classify of runs/a/last.pt, val/top1 0.5000>"
    assert result.pictures == [tmp_path / "sheet.png"]
    html = result._repr_html_()
    for text in ("1,200", "0.5000", "95%: 0.2500 to 0.7500", "cat", "data:image/png"):
        assert text in html
    assert "val/top1_interval" not in html


def test_evaluation_with_very_many_values_says_how_many_are_left_out():
    html = EvaluationResult("knn", {f"val/{number}": 0.5 for number in range(45)})._repr_html_()
    assert "and 5 more" in html
