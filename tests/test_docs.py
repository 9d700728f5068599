"""What the documents say is true: their code runs as it stands, and their tables list what there is."""

import re
import sys
from pathlib import Path

import pytest
from processes import ROOT, TINY, call, losses, run

from mim.config import schema


def _blocks(document: str, language: str) -> dict[str, str]:
    """Code blocks that open with a comment of a file's name, by that name."""
    found = re.findall(rf"```{language}\n# (\S+)\n(.*?)```", (ROOT / document).read_text(), flags=re.DOTALL)
    return dict(found)


def _write(folder: Path, document: str) -> None:
    for name, code in (_blocks(document, "python") | _blocks(document, "yaml")).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(code)


@pytest.fixture
def own_registry(monkeypatch, tmp_path):
    """Lets examples of two documents take one name, and forgets them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    for family in map(schema.family, schema.FAMILIES):
        monkeypatch.setattr(family, "_members", dict(family._members))
    yield
    for module in [module for module in sys.modules if module.startswith("my_package")]:
        del sys.modules[module]


def test_extending_examples_train_together(tmp_path, own_registry):
    _write(tmp_path, "docs/extending.md")
    code, output = call(tmp_path / "run", {}, recipe=tmp_path / "mine.yaml")
    assert code == 0, output
    found = losses(tmp_path / "run")
    assert found[-1] < 0.8 * found[0]
    assert "rows: 32 of 64 cells" in output


def test_extending_check_holds_for_the_examples(tmp_path):
    _write(tmp_path, "docs/extending.md")
    code, output = run(["env", "-C", str(tmp_path), sys.executable, "check.py"], tmp_path)
    assert code == 0, output


def test_readme_encoder_trains(tmp_path, own_registry):
    _write(tmp_path, "README.md")
    code, output = call(tmp_path / "run", {"TRAIN.epochs": 1}, recipe=tmp_path / "mine.yaml")
    assert code == 0, output
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0]


def test_readme_python_example_runs(tmp_path):
    code, output = run([sys.executable, "-c", _blocks("README.md", "python")["example.py"]])
    assert code == 0, output


def test_readme_weights_example_loads_a_run(tmp_path):
    code, output = call(tmp_path / "runs" / "mae", TINY)
    assert code == 0, output
    program = _blocks("README.md", "python")["weights.py"]
    code, output = run(["env", "-C", str(tmp_path), sys.executable, "-c", program], tmp_path)
    assert code == 0, output
    assert "torch.Size([2, 16])" in output
    assert "4 torch.Size([2, 16, 8, 8])" in output


def test_readme_table_lists_every_part():
    rows = dict(re.findall(r"^\| `([A-Z]+)` \| (.+?) \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE))
    for section in schema.FAMILIES:
        names = {name for name, part in schema.family(section).members().items() if part.__module__.startswith("mim.")}
        assert set(re.findall(r"`(\w+)`", rows[section])) == names, section


def test_documents_link_to_files_that_exist():
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#]+?)\)", document.read_text()):
            if "://" not in target:
                assert (document.parent / target).exists(), f"{document.name}: {target}"
