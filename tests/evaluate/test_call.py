"""mim.evaluate: a package that is called, whatever was imported before; each evaluation takes its own settings."""

import inspect
import subprocess
import sys
from types import ModuleType

import pytest
from processes import RECIPE, TINY

import mim
from mim.evaluate.call import _EVALUATIONS


@pytest.mark.slow
@pytest.mark.parametrize("before", ["", "import mim.evaluate.dense; from mim import evaluate"])
def test_evaluate_is_called_and_stays_a_package(before):
    code = f"import mim; {before}\nassert callable(mim.evaluate)\nfrom mim.evaluate import knn, dense\n"
    code += "assert mim.evaluate.knn is knn and callable(mim.evaluate) and 'evaluate' in mim.__all__"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("words", "settings", "text"),
    [
        (("knm",), {}, "no evaluation 'knm'. did you mean 'knn'"),
        (("knn",), {"kk": 3}, "knn has no setting 'kk'. did you mean 'k'"),
        (("knn", "cat.png"), {}, "knn takes no images"),
        (("predict",), {}, "predict: name images"),
        (("features",), {}, "features writes a file: name it with output="),
    ],
)
def test_evaluate_says_what_to_mend(tmp_path, words, settings, text):
    with pytest.raises(ValueError, match=text):
        mim.evaluate(tmp_path, *words, **settings)
    assert list(tmp_path.iterdir()) == []


def test_each_setting_has_a_default_and_each_evaluation_is_in_the_package():
    assert isinstance(mim.evaluate, ModuleType)
    for name, function in _EVALUATIONS.items():
        assert callable(getattr(mim.evaluate, name))
        call, *settings = inspect.signature(function).parameters.values()
        assert call.name == "call"
        assert all(setting.default is not inspect.Parameter.empty for setting in settings), name


@pytest.mark.slow
def test_evaluate_and_reconstruct_show_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = mim.train(RECIPE, {**TINY, "DATA.workers": 0}, tmp_path / "run", quiet=True)
    encoder = result.encoder()
    assert encoder.spec.width == 16
    found = mim.evaluate(result.folder, k=3)  # knn, as it is a pretraining
    assert (found.what, found["k"]) == ("knn", 3)
    assert mim.evaluate.knn(tmp_path / "run", (), "mean", 3, 0.07, mim.evaluate.call.LabelSettings()) == found
    sheets = mim.evaluate(result.folder, "dense", output="sheets", count=2)
    assert all(path.is_file() for path in sheets.pictures)
    assert sheets._repr_html_().count("<img") == len(sheets.pictures) > 1
    sheet = mim.reconstruct(result.folder, ratios=[0.5, 0.75], held_out=2, overrides={"DATA.workers": 0})
    assert [round(share, 1) for share, _ in sheet.mean_errors("run")] == [0.5, 0.8]
    html = sheet._repr_html_()
    assert "50% hidden" in html
    assert html.count("<img") == 1
    assert repr(sheet).startswith("<Reconstructed of 2 images, mean error: run ")
    assert sheet.save("sheet.png").is_file()
    compared = mim.compare(result.folder, reconstructions=False, output="page")
    assert (tmp_path / "page" / "comparison.html").is_file()
    assert repr(compared).startswith("<ComparedRuns run: 1 entry, 1 run")
