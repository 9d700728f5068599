"""What fuzzing and trying by hand once broke, each as a case of its own: configs, plugins, files of weights."""

import json
import os
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import converted
import foreign_files as foreign
import pytest
import torch
from exploring import bounded_memory
from safetensors.torch import load_file, save_file
from small_data import RECIPE, logged, write_recipe

from mim import ConfigError, Masker, load_config, load_encoder
from mim.config import parse_config
from mim.convert import convert
from mim.interop import read
from mim.interop.names import fold_names

HEADS = ("ENCODER.heads", "3")


def refused(folder: Path, text: str = RECIPE, overrides: tuple[str, ...] = ()) -> str:
    path = write_recipe(folder, text)
    with pytest.raises(ConfigError) as caught, bounded_memory(300), logged():
        load_config(path, overrides)
    message = str(caught.value)
    assert overrides or str(path) in message  # what overrides alone break is named without the file
    assert len(message) < 2000
    return message


# -------------------------------------------------------------------- configs

LAUGHS = "PLUGINS:\n- &a0 [x, x]\n" + "".join(f"- &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("X: " + "[" * 100_000, "more than 16 nested lists and mappings"),
        ("X: " + "{a: " * 2000 + "}" * 2000, "more than 16 nested lists and mappings"),
        (RECIPE + "PLUGINS: &a [*a]\n", "line 8: *a contains itself"),
        ("TRAIN: &a {x: *a}\n", "line 1: *a contains itself"),
        (RECIPE + LAUGHS, "more than 10,000 values"),
        ("".join(f"K{i}: 1\n" for i in range(20_000)), "more than 10,000 values"),
        (RECIPE + "# " + "x" * 2**20, "more than 1,048,576 bytes"),
        (RECIPE + "SEED: !!python/object/apply:os.system ['true']\n", "line 8"),
        (RECIPE.replace("name: digits", "name: digits, path: !!python/name:os.system x"), "line 2"),
        (RECIPE.replace("name: digits", 'name: digits, path: "a\\0b"'), "DATA.path is"),
        (RECIPE.replace("name: digits", 'name: digits, path: "\\uDCFF"'), "DATA.path is"),
        ("? " + "a" * 200_000 + "\n: 3\n", "unknown section or key aaa"),
        ("[a, b]: 3\n", "line 1: a key is a list or a mapping"),
        (RECIPE + "---\nTASK: pretrain\n", "line 8: not YAML"),
        (RECIPE + "TRAIN: {<<: {epochs: 3}}\n", "unknown key TRAIN.<<"),
    ],
)
def test_config_text_that_is_no_plain_one_is_refused(tmp_path: Path, text: str, says: str) -> None:
    assert says in refused(tmp_path, text)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "/dev/zero", "fifo", "loop"])
def test_config_path_that_is_no_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(ConfigError, match=r"does not exist|is no file|cannot be read"):
        load_config(tmp_path / name if name in ("fifo", "loop") else name)


@pytest.mark.parametrize("codec", ["utf-16", "latin-1"])
def test_config_of_another_encoding_names_the_byte(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(RECIPE.replace("name: digits", "name: digits, path: é").encode(codec))
    with pytest.raises(ConfigError, match=r"is not UTF-8 text: byte \d+ is 0x"):
        load_config(path)


@pytest.mark.parametrize("change", [lambda text: "\ufeff" + text, lambda text: text.replace("\n", "\r\n")])
def test_config_with_a_byte_order_mark_or_carriage_returns_is_read(tmp_path: Path, change: Callable) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(change(RECIPE).encode())
    assert load_config(path) == parse_config(RECIPE)


def test_config_alias_that_repeats_a_little_is_read() -> None:
    text = RECIPE.replace("heads: 2}\nHEAD", "heads: &h 2}\nHEAD").replace(
        "depth: 1, heads: 2}\nT", "depth: 1, heads: *h}\nT"
    )
    assert parse_config(text).HEAD.heads == 2


SWIN = ("ENCODER.name", "swin", "ENCODER.hidden", "replace", "HEAD.name", "pixel_shuffle", "ENCODER.patch", "4")


@pytest.mark.parametrize(
    "overrides",
    [
        *(("ENCODER.depth", "1000000000"), ("HEAD.depth", "100000"), ("ENCODER.width", "1000000000")),
        *(("ENCODER.width", "9223372036854775808"), ("ENCODER.mlp_ratio", "1e300"), ("HEAD.mlp_ratio", "1e18")),
        *(("DATA.image_size", "[1000000000, 1000000000]"), ("TRAIN.epochs", "1" + "0" * 40), ("SEED", "9" * 5000)),
        *(
            ("DATA.channels", "1000000000"),
            ("DISTRIBUTED.timeout_s", "1" + "0" * 24),
            ("SEED", "१२"),
            ("DATA.path", "\udcff"),
        ),
        (*SWIN, "ENCODER.heads", "[2]", "ENCODER.depths", "[1000000]"),
        (*SWIN, "ENCODER.heads", str([2] * 60), "ENCODER.depths", str([20] * 60)),
        (
            "ENCODER.name",
            "swin_v2",
            *SWIN[2:],
            "ENCODER.heads",
            "[2]",
            "ENCODER.depths",
            "[2]",
            "ENCODER.window",
            "4",
            "ENCODER.pretrained_windows",
            "[1000000000000000000000]",
        ),
        ("DATA.image_size", "[65536, 65536]", "MASKER.name", "grid", "MASKER.cell", "1", "ENCODER.patch", "1"),
        ("DATA.image_size", "[" * 5000),
        ("DATA.image_size", "[" + "32," * 60_000 + "]"),
        ("DATA.image_size", "[!!python/name:os.system , 3]"),
        ("ENCODER.name", "a" * 1000),
        ("A" * 100_000, "1"),
    ],
)
def test_config_absurd_value_is_refused_at_once_by_its_key(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    message = refused(tmp_path, overrides=overrides)
    assert any(key[:100] in message for key in overrides[::2]) or "MASKER.cell 1 " in message


def test_config_weight_with_more_numbers_than_can_be_counted_is_refused(tmp_path: Path) -> None:
    stages = ("ENCODER.heads", str([1] * 13), "ENCODER.depths", str([1] * 13), "ENCODER.window", "65536")
    size = (
        "DATA.image_size",
        "[65536, 65536]",
        "MASKER.cell",
        "32768",
        "ENCODER.width",
        "65536",
        "ENCODER.mlp_ratio",
        "1024",
    )
    assert "too large" in refused(tmp_path, overrides=(*SWIN[:-1], "16", *stages, *size))


def test_config_key_equals_value_is_told_how_to_write_it(tmp_path: Path) -> None:
    for overrides in (("TRAIN.epochs=3",), ("TRAIN.epochs=3", "TRAIN.clip=1")):
        assert "two words: TRAIN.epochs 3" in refused(tmp_path, overrides=overrides)


PLUGINS = {
    "syntax": ("def (", "SyntaxError"),
    "leaving": ("raise SystemExit(0)", "SystemExit"),
    "dividing": ("1 / 0", "ZeroDivisionError"),
    "recursing": ("def f(): f()\nf()", "RecursionError"),
    "memory": ("raise MemoryError", "MemoryError"),
}


@pytest.mark.parametrize("name", PLUGINS)
def test_config_plugin_that_fails_on_import_is_named_with_its_error_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    text, error = PLUGINS[name]
    (tmp_path / f"mim_test_{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    message = refused(tmp_path, RECIPE + f"PLUGINS: [mim_test_{name}]\n")
    assert f"mim_test_{name}" in message
    assert error in message
    assert "line " in message


@pytest.mark.parametrize("name", ["../x", "os;x", "", " ", ".", "a" * 5000, ".".join("a" * 1200), "/etc/passwd"])
def test_config_plugin_of_an_odd_name_is_refused(tmp_path: Path, name: str) -> None:
    assert "PLUGINS names" in refused(tmp_path, RECIPE + f"PLUGINS: ['{name}']\n")


def test_config_key_of_a_plugin_that_no_value_is_parsed_for_is_named(tmp_path: Path) -> None:
    class Odd(Masker, name="of_test_fuzz_regressions"):
        def __init__(self, image: Any, *, table: frozenset = frozenset()) -> None:
            super().__init__(image)

    try:
        message = refused(
            tmp_path, RECIPE.replace("{name: random, cell: 8, ratio: 0.75}", "{name: of_test_fuzz_regressions}")
        )
    finally:
        Masker._members.pop("of_test_fuzz_regressions")
    assert "its key table is annotated <class 'frozenset'>" in message


# -------------------------------------------------------------------- files of weights


def unread(path: Path, called: str = "weights") -> str:
    with pytest.raises(ValueError, match=called) as caught, bounded_memory(300):
        load_encoder(path, HEADS, strict=False)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < 3000
    return str(caught.value)


def saved(folder: Path, change: dict[str, Any], **extra: Any) -> Path:
    torch.save({"model": {**foreign.mae_pretrained(), **change}, **extra}, folder / "a.pth")
    return folder / "a.pth"


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *(("pos_embed", shape) for shape in ([], [24], [24, 24], [1, 0, 24], [1, 1, 1, 1, 1])),
        *(("patch_embed.proj.weight", shape) for shape in ([], [24, 24], [0, 3, 8, 8])),
        *(("blocks.0.mlp.fc1.weight", shape) for shape in ([], [0, 24], [0, 2**40])),
        *(("decoder_embed.weight", []), ("decoder_pos_embed", [3]), ("norm.weight", []), ("patch_embed.proj.bias", [])),
    ],
)
def test_weights_of_a_wrong_rank_are_named_with_their_shape(tmp_path: Path, name: str, shape: list[int]) -> None:
    assert f"{name} has the shape {shape}" in unread(saved(tmp_path, {name: torch.ones(shape)}))


def test_weights_that_repeat_one_number_without_an_end_are_refused(tmp_path: Path) -> None:
    for name, shape in (("blocks.0.mlp.fc1.weight", (10**6, 10**6)), ("pos_embed", (1, 10**9, 10**9))):
        assert f"{name} has" in unread(saved(tmp_path, {name: torch.zeros(1).expand(shape)}))


def test_weights_whose_shapes_would_ask_for_a_huge_table_of_positions_are_refused(tmp_path: Path) -> None:
    wide = {"patch_embed.proj.weight": torch.zeros(10**6, 1, 1, 1), "pos_embed": torch.zeros(1, 10**6 + 1, 1)}
    assert "ENCODER.width is 1000000" in unread(saved(tmp_path, wide), "ENCODER")


@pytest.mark.filterwarnings("ignore:Validating sparse", "ignore:TypedStorage", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda weight: weight.to_sparse(), "is a sparse tensor"),
        (lambda weight: weight.to("meta"), "is a tensor without values"),
        (lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8), "is a quantised tensor"),
        (lambda weight: weight.to(torch.complex64), "is of type torch.complex64"),
        (lambda weight: weight.to(torch.int8), "is of type torch.int8"),
        (lambda weight: weight * float("nan"), "contains infinite numbers or NaN"),
        (lambda weight: weight / 0, "contains infinite numbers or NaN"),
    ],
)
def test_weights_that_are_no_finite_dense_numbers_are_refused(tmp_path: Path, change: Callable, says: str) -> None:
    name = "blocks.0.attn.qkv.weight"
    message = unread(saved(tmp_path, {name: change(foreign.mae_pretrained()[name])}))
    assert name in message
    assert says in message


def test_weights_in_a_compressed_archive_are_refused_unread(tmp_path: Path) -> None:
    path = saved(tmp_path, {})
    with zipfile.ZipFile(path) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        for name, content in records.items():
            bomb.writestr(name, content)
        bomb.writestr("a/data/99", bytes(2**26))
    assert "is compressed" in unread(path)


def test_weights_of_which_a_bit_has_changed_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, {})
    content = bytearray(path.read_bytes())
    content[content.index(foreign.mae_pretrained()["cls_token"].numpy().tobytes()) + 2] ^= 1
    path.write_bytes(content)
    assert "the checksum of a/data/0 does not match its content" in unread(path)


def test_weights_that_were_written_without_checksums_are_refused_with_a_remedy(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(tmp_path, {})
    finally:
        torch.serialization.set_crc32_options(True)
    assert "load and save it with PyTorch once" in unread(path)
    torch.save(torch.load(path), path)
    load_encoder(path, HEADS)


def test_weights_with_a_file_name_too_long_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        read(Path("x" * 5000), "weights")


@pytest.mark.parametrize(
    "record",
    ["ENCODER: {patch: 0}", "DATA: {image_size: abc}", "DATA: {image_size: [0, 0]}", "ENCODER: {window: [1]}"],
)
def test_weights_with_a_record_that_cannot_be_name_its_key(tmp_path: Path, record: str) -> None:
    assert "mim_config" in unread(saved(tmp_path, {}, mim_config=record))


@pytest.mark.parametrize(
    "record", ["TASK: {a: b}", "A: &a [*a]", "[" * 10**5, "DATA: !!python/name:os.system", 3, None]
)
def test_weights_with_a_record_that_is_none_are_read_without_it(tmp_path: Path, record: Any) -> None:
    path = saved(tmp_path, {}, mim_config=record)
    assert load_encoder(path, HEADS, strict=False).image.height == 32


def folder_of_transformers(folder: Path) -> Path:
    convert(converted.sample("mae").write(folder / "own.pt"), folder / "theirs", "transformers")
    return folder / "theirs"


def test_weights_in_parts_of_other_shapes_are_refused(tmp_path: Path) -> None:
    source = folder_of_transformers(tmp_path)
    weights = load_file(source / "model.safetensors")
    query = next(name for name in weights if name.endswith("query.weight"))
    save_file({**weights, query: torch.ones(3, 5)}, source / "model.safetensors")
    assert "parts of one weight must have the same shape" in unread(source)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("image_size", value) for value in ("224", [32], [1.5, 2], {"height": 3}, 10**30, -1, 2.5)),
        *(("num_attention_heads", "x"), ("mask_ratio", [1]), ("layer_norm_eps", "1e-6"), ("layer_norm_eps", [1])),
        *(("window_size", [7]), ("pretrained_window_sizes", 7 * [[1]])),
    ],
)
def test_weights_in_a_folder_with_a_hostile_config_name_its_key(tmp_path: Path, key: str, value: Any) -> None:
    source = folder_of_transformers(tmp_path)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, key: value}))
    assert key in unread(source)


def test_weights_in_a_folder_whose_json_nests_without_an_end_are_refused(tmp_path: Path) -> None:
    source = folder_of_transformers(tmp_path)
    (source / "config.json").write_text("[" * 10**5)
    assert "its JSON cannot be read" in unread(source)


@pytest.mark.parametrize(
    ("length", "header"),
    [
        (2**63, {}),
        (99_000_000, {}),
        (None, {"a": {"dtype": "F32", "shape": [10**6, 10**6], "data_offsets": [0, 4 * 10**12]}}),
        (None, {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}),
        (None, {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}),
        (None, {"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}),
        (None, {"patch_embed.proj.weight": {"dtype": "F32", "shape": [0, 2**60], "data_offsets": [0, 0]}}),
    ],
)
def test_weights_with_a_hostile_safetensors_header_are_refused(
    tmp_path: Path, length: int | None, header: dict
) -> None:
    text = json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length or len(text)) + text + bytes(4))
    unread(path)


def test_names_of_weights_are_told_without_what_a_terminal_would_act_on() -> None:
    text = fold_names(["a\x1b[31m", "b\nc", "x" * 10_000])
    assert text.isprintable()
    assert len(text) < 1000
