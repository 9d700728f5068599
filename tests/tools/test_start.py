"""benchmarks/start.py: the folder that it writes, a real listing and a real first step, and its table."""

import os

import pytest
from processes import ROOT


@pytest.fixture
def start(monkeypatch):
    """The module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import start

    return start


def test_start_writes_class_folders_of_links(start, tmp_path):
    start.write(tmp_path, 11, 3)
    counts = {folder.name: len(list(folder.iterdir())) for folder in tmp_path.iterdir()}
    assert counts == {"n00000000": 4, "n00000001": 4, "n00000002": 3}
    assert len({file.stat().st_ino for file in tmp_path.glob("*/*.JPEG")}) == 3


@pytest.mark.parametrize("kind", ["listing", "first step"])
def test_start_measures_a_process_up_to_its_end(start, tmp_path, kind):
    start.write(tmp_path / "images", 24, 2)
    figures = start.run(kind, tmp_path / "images", 0)
    assert 0.5 < figures["seconds"] < 600
    assert 50 < figures["mib"] < 8_000
    assert os.listdir(tmp_path) == ["images"]  # neither a run folder nor an index of so few


def test_start_lists_without_an_index_first_and_compares_the_folders(start, monkeypatch, capsys, tmp_path):
    from mim.data.sources.tree_index import index_files

    calls = []

    def run(kind: str, folder, workers: int) -> dict[str, float]:
        index, images = index_files(folder)[0], sum(len(files) for _, _, files in os.walk(folder))
        calls.append((images, kind, index.exists()))
        index.touch()
        return {"seconds": images / 100 if calls[-1][2] else images / 50, "mib": 200.0}

    monkeypatch.setattr(start, "run", run)
    words = ["start.py", "--images", "1200", "--folders", "3", "--rounds", "2", "--at", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    start.main()
    for images in (1000, 1200):
        for kind in ("listing", "first step"):
            assert [known for *which, known in calls if which == [images, kind]] == [False, True] * 2
    output = capsys.readouterr().out
    assert "| 1,200 | first step | second | 12.0 (12.0 to 12.0) | 200 (200 to 200) |" in output
    assert "second time, the first step of 1,200 images: +2.0 s" in output
    assert list(tmp_path.iterdir()) == []
