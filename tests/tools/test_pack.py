"""tools/pack.py: what it writes, prints and refuses, and that a run reads what it wrote."""

import shlex
from pathlib import Path

import numpy as np
import pytest
from processes import ESTIMATED, TINY, call, losses, tool
from small_data import digit, photograph, write_digits
from warm import Warm

from mim.data.settings import DataSettings
from mim.data.sources.packed import Packed


@pytest.fixture
def main(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """Exit code, output and errors of the tool in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def called(*words: object) -> tuple[int, str, str]:
        code = tool("pack").main([str(word) for word in (*words, "--workers", 0)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return called


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three class folders to train on, and a held-out image of each."""
    for number, name in enumerate(("five", "four", "three")):
        write_digits(tmp_path / "images" / "train" / name, 8, first=8 * number)
        write_digits(tmp_path / "images" / "val" / name, 1, first=50 + number)
    return tmp_path / "images"


def settings_of(output: str) -> dict[str, str]:
    """The KEY VALUE pairs of the last line, which says how to read what was written."""
    words = shlex.split(output.splitlines()[-1])
    return dict(zip(words[::2], words[1::2], strict=True))


def test_pack_tool_writes_what_a_run_reads(main, images: Path, tmp_path: Path) -> None:
    code, output, errors = main(images, tmp_path / "a packed set", "DATA.channels", 1)
    assert (code, errors) == (0, "")
    assert "24 train, 3 val" in output
    assert "3 classes" in output
    size = sum(path.stat().st_size for path in (tmp_path / "a packed set").glob("*.images"))
    assert size == 27 * 1024
    assert "27.6 kB, 1.0 kB an image" in output
    keys = settings_of(output)
    assert keys == {"DATA.name": "packed", "DATA.path": str(tmp_path / "a packed set"), "DATA.channels": "1"}
    code, text = call(tmp_path / "run", {**TINY, **keys, "DATA.batch_size": 8, "TRAIN.batch": 8})
    assert code == 0, text
    assert len(losses(tmp_path / "run")) == 3


@pytest.mark.slow
def test_pack_tool_as_a_process_packs_photographs_in_workers(tmp_path: Path, warm: Warm) -> None:
    (tmp_path / "images").mkdir()
    for number in range(20):
        photograph(60 + number, 80).save(tmp_path / "images" / f"{number:02d}.jpg")
    words = [tmp_path / "images", tmp_path / "out", "--short-side", 40, "--store", "jpeg", "--workers", 2]
    code, output = warm.run_program("pack", 1, words, tmp_path / "log")
    assert code == 0, output
    packed = Packed("train", DataSettings(path=str(tmp_path / "out")), val_share=0)
    assert packed.header.store == "jpeg"
    assert [min(packed.read(index).size) for index in range(20)] == [40] * 20
    assert [Path(packed.describe(index)).name for index in range(20)] == [f"{number:02d}.jpg" for number in range(20)]


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_pack_tool_makes_of_photographs_what_on_device_needs(store: str, main, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(20):
        photograph(30 + 5 * number, 90 - 3 * number).save(tmp_path / "images" / f"{number:02d}.jpg")
    shared = {**TINY, **ESTIMATED, "DATA.batch_size": 8, "TRAIN.batch": 8, "DATA.val_share": 0.1}
    shared["AUGMENT.on_device"] = True
    files = {"DATA.name": "folder", "DATA.path": str(tmp_path / "images"), "DATA.channels": 3}
    code, text = call(tmp_path / "files", {**shared, **files})
    assert code == 2
    assert "pack them with tools/pack.py --size H W and set DATA.name packed" in text
    code, output, errors = main(tmp_path / "images", tmp_path / "out", "--size", 40, 48, "--store", store)
    assert (code, errors) == (0, "")
    assert f"{'3 x uint8' if store == 'pixels' else 'JPEG'}, 40 x 48 px each (height x width)" in output
    code, text = call(tmp_path / "run", {**shared, **settings_of(output)})
    assert code == 0, text
    assert len(losses(tmp_path / "run")) == 2


def test_pack_tool_refuses_a_size_of_one_number(main, images: Path, tmp_path: Path) -> None:
    code, _, errors = main(images, tmp_path / "out", "--size", 32)
    assert code == 2
    assert "argument --size: expected 2 arguments" in errors


def test_pack_tool_keeps_sizes_and_takes_other_keys_of_the_source(main, images: Path, tmp_path: Path) -> None:
    pairs = ["DATA.labels", "none", "DATA.channels", 3, "DATA.val_path", images / "val" / "four"]
    code, output, _ = main(images / "train", tmp_path / "out", "--short-side", 0, *pairs)
    assert code == 0
    assert "24 train, 1 val" in output
    train, val = (Packed(split, DataSettings(path=str(tmp_path / "out"))) for split in ("train", "val"))
    assert train.labels is None
    assert val.read(0).mode == "RGB"
    assert np.array_equal(np.asarray(val.read(0).convert("L")), np.asarray(digit(51)))


def test_pack_tool_packs_a_data_set_of_another_name(main, tmp_path: Path) -> None:
    code, output, errors = main("anywhere", tmp_path / "out", "DATA.name", "digits", "DATA.channels", 1)
    assert (code, errors) == (0, "")
    assert "1,437 train, 360 val" in output
    packed = Packed("val", DataSettings(path=str(tmp_path / "out"), channels=1))
    assert packed.classes == tuple("0123456789")
    assert packed.describe(7) == "digits val image 7"


def test_pack_tool_names_what_it_left_out(main, images: Path, tmp_path: Path) -> None:
    for number in range(12):
        (images / "train" / "five" / f"bad-{number:02d}.png").write_bytes(b"no image")
    code, output, _ = main(images, tmp_path / "out", "DATA.channels", 1)
    assert code == 0
    assert "24 train, 3 val" in output
    assert "12 that cannot be read, named in its left_out.txt" in output
    assert sum("bad-" in line for line in output.splitlines()) == 10
    assert "and 2 more" in output
    lines = (tmp_path / "out" / "left_out.txt").read_text().splitlines()
    assert [Path(line.split("\t")[0]).name for line in lines] == [f"bad-{number:02d}.png" for number in range(12)]


def test_pack_tool_checks_what_it_wrote(main, images: Path, tmp_path: Path) -> None:
    assert main(images, tmp_path / "out", "DATA.channels", 1)[0] == 0
    assert main("--check", tmp_path / "out")[:2] == (0, f"no image of {tmp_path / 'out'} is damaged\n")
    content = bytearray((tmp_path / "out" / "train.images").read_bytes())
    content[1030] ^= 1
    (tmp_path / "out" / "train.images").write_bytes(content)
    code, output, _ = main("--check", tmp_path / "out")
    assert code == 1
    assert "train image 1, five/digit-001.png: its bytes have changed" in output
    assert f"damaged in {tmp_path / 'out'}: 1\n" in output


def test_pack_tool_stopped_by_hand_leaves_nothing(
    main, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mim.data.sources.packing.reduce_to_short_side", stop)
    code, output, errors = main(images, tmp_path / "out", "DATA.channels", 1)
    assert (code, output, errors) == (130, "", "stopped: nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["{images}"], "name the folder to write: python tools/pack.py SOURCE OUT"),
        (["{images}", "{images}"], "exists and is not empty: name a new folder"),
        (["/nowhere", "{out}"], "DATA.path /nowhere does not exist"),
        (["{images}", "{out}", "--short-side", "-3"], "--short-side is -3"),
        (["{images}", "{out}", "--size", "0", "32"], "--size is 0 32: a height and a width in pixels, each at least 1"),
        (["{images}", "{out}", "--size", "32", "-1"], "--size is 32 -1"),
        (
            ["{images}", "{out}", "--size", "8", "9", "--short-side", "256"],
            "--size and --short-side exclude each other",
        ),
        (["{images}", "{out}", "--store", "jpeg", "--quality", "101"], "--quality is 101"),
        (["{images}", "{out}", "DATA.lables", "none"], "unknown key DATA.lables of folder: did you mean 'labels'?"),
        (["{images}", "{out}", "TRAIN.batch", "3"], "TRAIN.batch has no effect on packing: only keys of DATA have"),
        (
            ["a-0.tar", "a-1.tar", "{out}", "DATA.name", "webdataset"],
            "is a third name after SOURCE and OUT: put a pattern",
        ),
        (["{images}", "{out}", "DATA.labels"], "overrides come in pairs"),
        (["{images}", "{out}", "DATA.name", "nmae"], "DATA.name 'nmae' is unknown"),
        (["--check", "{images}"], "holds no packed.json"),
    ],
)
def test_pack_tool_says_what_is_wrong(main, words: list[str], text: str, images: Path, tmp_path: Path) -> None:
    code, _, errors = main(*(word.format(images=images, out=tmp_path / "out") for word in words))
    assert code == 2
    assert errors.startswith("error: ")
    assert text in errors
    assert not (tmp_path / "out").exists()


def test_pack_tool_warns_of_labels_that_are_no_classes(main, tmp_path: Path) -> None:
    paths = write_digits(tmp_path / "images", 20)
    lines = [f"{path.name}\t{number / 7:.3f}" for number, path in enumerate(paths)]
    (tmp_path / "images" / "list.txt").write_text("\n".join(lines))
    code, _, errors = main(tmp_path / "images" / "list.txt", tmp_path / "packed", "DATA.channels", 1)
    assert code == 0
    assert errors.startswith("warning: the labels in the second column of DATA.path")
    assert "DATA.labels none" in errors
