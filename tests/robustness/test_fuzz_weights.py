"""Files of weights of any kind: an encoder that works, or one clear ValueError and an encoder that is as it was.

Every case starts from a small file of a format that is read, of which names, shapes, types, values, holders, what
stands beside, or bytes are changed. `make test` tries 120 cases; those marked slow are 2,100, which makes 10,200 with
those of test_fuzz_config.py. They are the same in every run.
"""

import argparse
import json
import re
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import converted
import foreign_files as foreign
import pytest
import torch
from exploring import Explore, profile
from hypothesis import strategies as st
from safetensors.torch import save_file
from small_data import logged
from torch import Tensor

from mim import Encoder, load_encoder
from mim.convert import convert
from mim.interop.initialise import initialise_encoder
from mim.io import weights as ops_weights
from mim.io.weights import CHECKPOINT_FORMAT

LONGEST = 6_000  # characters of a message
pytestmark = pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")  # PyTorch will remove them


@pytest.fixture(autouse=True)
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What weights may repeat is as small as these models: the limit lies at 4 GiB, which is long to write."""
    monkeypatch.setattr(ops_weights, "REPEATED", 2**22)


# -------------------------------------------------------------------- files that are read


@dataclass(frozen=True)
class Kind:
    """A format, small: its weights, what stands beside them, where, and what the file does not tell."""

    weights: Callable[[], dict[str, Tensor]]
    holder: str = "model"
    extra: Callable[[], dict[str, Any]] = dict
    overrides: tuple[str, ...] = ()
    folder: str = ""


def toolkit_kind(name: str) -> Kind:
    """A checkpoint of this toolkit."""
    sample = converted.sample(name)
    config = sample.cfg.to_yaml()
    return Kind(
        lambda: sample.state, extra=lambda: {"format": CHECKPOINT_FORMAT, "step": 3, "ema": {}, "config": config}
    )


HEADS = ("ENCODER.heads", "3")
SIZE = ("DATA.image_size", "[32, 32]")
ARGUMENTS = {"input_size": 32, "mask_ratio": 0.75, "norm_pix_loss": True, "model": "x"}
KINDS: dict[str, Callable[[], Kind]] = {
    "mae": lambda: Kind(
        foreign.mae_pretrained, extra=lambda: {"args": argparse.Namespace(**ARGUMENTS)}, overrides=HEADS
    ),
    "mae-tuned": lambda: Kind(foreign.mae_finetuned, overrides=HEADS),
    "mae-probed": lambda: Kind(foreign.mae_probed, overrides=HEADS),
    "simmim-swin": lambda: Kind(
        lambda: foreign.simmim_pretrained(foreign.swin(), 8), extra=lambda: {"config": foreign.simmim_config()}
    ),
    "simmim-swin2": lambda: Kind(
        lambda: foreign.simmim_pretrained(foreign.swin(version=2), 8),
        extra=lambda: {"config": foreign.simmim_config(section="SWINV2")},
    ),
    "simmim-vit": lambda: Kind(lambda: foreign.simmim_pretrained(foreign.simmim_vit(), 8), overrides=SIZE),
    "timm": lambda: Kind(lambda: foreign.random_weights(foreign.vit()), holder="state_dict", overrides=HEADS),
    "timm-flat": lambda: Kind(lambda: foreign.random_weights(foreign.vit()), holder="", overrides=HEADS),
    "timm-safetensors": lambda: Kind(lambda: foreign.random_weights(foreign.vit()), folder="file", overrides=HEADS),
    "transformers": lambda: folder_of("mae"),
    "transformers-swin": lambda: folder_of("swin"),
    "mim": lambda: toolkit_kind("mae"),
    "mim-swin": lambda: toolkit_kind("swin"),
    "mim-beit": lambda: toolkit_kind("beit-mean"),
}


@cache
def kind(name: str) -> Kind:
    template = KINDS[name]()
    weights = template.weights()
    return replace(template, weights=lambda: weights)


def folder_of(name: str) -> Kind:
    """What save_pretrained would write."""
    import tempfile

    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as folder:
        source = converted.sample(name).write(Path(folder) / "a.pt")
        convert(source, Path(folder) / "out", "transformers")
        config = json.loads((Path(folder) / "out" / "config.json").read_text())
        weights = load_file(Path(folder) / "out" / "model.safetensors")
    return Kind(lambda: weights, extra=lambda: dict(config), folder="folder")


def write(folder: Path, of: Kind, weights: Any, extra: dict[str, Any], holder: str) -> Path:
    """A file, or a folder, as this kind has them."""
    if not of.folder:
        torch.save({holder: weights, **extra} if holder else weights, folder / "a.pth")
        return folder / "a.pth"
    plain = {name: weight.contiguous().clone() for name, weight in weights.items() if isinstance(name, str)}
    if of.folder == "file":
        save_file(plain, folder / "a.safetensors")
        return folder / "a.safetensors"
    path = folder / "theirs"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(extra))
    save_file(plain, path / "model.safetensors")
    return path


# -------------------------------------------------------------------- what is changed

ODD_NAMES = st.one_of(
    st.sampled_from(
        [
            *(
                "",
                "a\nb",
                "\x1b[31m",
                "[red]",
                "x" * 2000,
                "encoder.",
                "head.weight",
                "head.1.weight",
                "module.norm.weight",
            ),
            *("blocks.999999999.attn.qkv.weight", "blocks.-1.norm1.weight", "blocks.٣.norm1.weight", "fc_norm.weight"),
            *("blocks." + "9" * 5000 + ".norm1.weight", "layers.7.blocks.0.attn.qkv.weight", "decoder_embed.weight"),
            *(
                "encoder.backbone.blocks.0.norm1.weight",
                "decoder.0.weight",
                "readouts.0.linear.weight",
                "cls_token",
                "pos_embed",
            ),
        ]
    ),
    st.text(max_size=6),
)
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.int64, torch.bool, torch.complex64),
    *(torch.float8_e4m3fn, torch.uint16),
)
SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 7, 16, 24, 49, 72]), max_size=4).filter(
    lambda shape: _count(shape) < 10**5
)
VALUES = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 7, 32, 10**9, 10**400, 1.5, float("nan"), float("inf"), "", "abc", "1", "{", "&a [*a]"]
    ),
    st.sampled_from(
        [[], [1, 2], [[1]], {"a": {}}, [None], ["x"], [32, 32], [0, 0], {"image_size": [32, 32]}, [10**30]]
    ),
    st.integers(),
    st.text(max_size=4),
)
RECORDS = st.sampled_from(
    [
        *(
            "ENCODER: 3",
            "TASK: {a: b}",
            "ENCODER: {name: swin}",
            "DATA: {image_size: [0, 0]}",
            "DATA: {image_size: 32}",
        ),
        *("ENCODER: {patch: 0}", "ENCODER: {window: [1]}", "ENCODER: {depths: 2}", "DATA: {image_size: [32, 1e3]}"),
        *(
            "PLUGINS: [os]",
            "A: &a [*a]",
            "DATA: !!python/name:os.system",
            "[" * 3000,
            "ENCODER: {1: 2, heads: 3}",
            "é\0",
        ),
        *("ENCODER: {heads: 3}\nDATA: {image_size: [64, 32], mean: [a]}", "CLASSIFIER: {pool: 3}\nENCODER: {norm: 1}"),
    ]
)


def _words(value: Any) -> str:
    return f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)[:200]


def _count(shape: list[int]) -> int:
    return torch.Size(shape).numel()


def seldom(draw: st.DrawFn, one_of: int) -> bool:
    return draw(st.integers(1, one_of)) == one_of


@st.composite
def changed(draw: st.DrawFn, weight: Tensor) -> Any:
    """A weight of another shape, type, layout or value, or none."""
    change = draw(
        st.sampled_from(["shape", "shape", "dtype", "value", "expand", "transpose", "layout", "none", "views"])
    )
    if change == "shape":
        return torch.ones(draw(SHAPES))
    if change == "dtype":
        return weight.to(draw(st.sampled_from(DTYPES)))
    if change == "value":
        return (
            torch.full_like(weight, draw(st.sampled_from([0, 1, float("nan"), float("inf"), 1e30, -1])))
            if (weight.is_floating_point())
            else weight + 1
        )
    if change == "expand":
        return torch.zeros([]).expand(
            draw(st.sampled_from([[10**6, 10**6], [1, 10**7, 24], [2] * 12, list(weight.shape)]))
        )
    if change == "transpose":
        return weight.movedim(0, -1) if weight.ndim else weight
    if change == "views":
        return torch.arange(weight.numel() * 2).float()[::2].reshape(weight.shape)
    if change == "layout" and weight.ndim > 1 and weight.is_floating_point():
        return draw(
            st.sampled_from(
                [weight.to_sparse(), weight.to("meta"), torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8)]
            )
        )
    return draw(st.sampled_from([None, 3, "text", [1.0], {"a": torch.ones(2)}, torch.tensor(1.0)]))


@dataclass(frozen=True, repr=False)
class Case:
    kind: str
    weights: Any
    extra: dict[Any, Any]
    holder: str
    overrides: tuple[str, ...]
    action: str

    def __repr__(self) -> str:
        """Without the numbers of weights that are as they were."""
        clean = kind(self.kind).weights()
        weights = self.weights if isinstance(self.weights, dict) else {"": self.weights}
        other = {key: _words(value) for key, value in weights.items() if value is not clean.get(key)}
        lost = sorted(set(clean) - set(weights))
        return f"Case({self.kind}, {self.action}, {other}, lost {lost[:9]}, {self.holder!r}, {str(self.extra)[:300]})"


@st.composite
def cases_of(draw: st.DrawFn) -> Case:
    name = draw(st.sampled_from(sorted(KINDS)))
    of = kind(name)
    weights, extra, holder = dict(of.weights()), of.extra(), of.holder
    for _ in range(draw(st.integers(0, 3))):
        what = draw(st.sampled_from(["weight", "weight", "weight", "rename", "drop", "add", "swap", "extra", "holder"]))
        weight_name = draw(st.sampled_from(sorted(weights, key=str))) if weights else ""
        if what == "weight" and isinstance(weights.get(weight_name), Tensor):
            weights[weight_name] = draw(changed(weights[weight_name]))
        elif what == "rename" and weights:
            weights[draw(ODD_NAMES)] = weights.pop(weight_name)
        elif what == "drop" and weights:
            if seldom(draw, 2):
                weights.pop(weight_name)
            else:  # all of a block, or of what is called alike
                part = weight_name.split(".")[-2:]
                weights = {key: weight for key, weight in weights.items() if str(key).split(".")[-2:] != part}
        elif what == "add":
            key = draw(ODD_NAMES) if of.folder or not seldom(draw, 6) else draw(st.sampled_from([1, None, (1, 2), 2.5]))
            weights[key] = torch.ones(draw(SHAPES))
        elif what == "swap" and len(weights) > 1:
            one, other = weight_name, draw(st.sampled_from(sorted(weights, key=str)))
            weights[one], weights[other] = weights[other], weights[one]
        elif what == "extra":
            draw(extra_changed(extra))
        elif what == "holder" and not of.folder:
            holder = draw(st.sampled_from(["", "model", "state_dict", "module", "model_ema", "net"]))
            weights = draw(st.sampled_from([weights, weights, torch.ones(3), [weights], {}, 3]))
            break
    overrides = (
        of.overrides if not seldom(draw, 8) else draw(st.sampled_from([(), SIZE, HEADS, ("ENCODER.patch", "4")]))
    )
    if of.folder:
        weights = {str(key): weight for key, weight in weights.items() if _storable(weight)}
    action = draw(st.sampled_from([*["initialise"] * 12, "load", "mim", "timm", "mae", "simmim", "transformers"]))
    return Case(name, weights, extra, holder, overrides, action)


def _storable(value: Any) -> bool:
    """Whether a safetensors file can hold it."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
    return plain and value.device.type == "cpu" and value.numel() < 10**6


@st.composite
def extra_changed(draw: st.DrawFn, extra: dict[Any, Any]) -> None:
    """What stands beside the weights, or in config.json."""
    if seldom(draw, 3):
        extra["mim_config"] = draw(st.one_of(RECORDS, VALUES))
        return
    keys = [
        *extra,
        "args",
        "config",
        "ema",
        "format",
        "image_size",
        "num_heads",
        "window_size",
        "model_type",
        "layer_norm_eps",
    ]
    key = draw(st.sampled_from(sorted(keys)))
    value = extra.get(key)
    if isinstance(value, argparse.Namespace):
        extra[key] = argparse.Namespace(**{**vars(value), draw(st.sampled_from(sorted(vars(value)))): draw(VALUES)})
    elif isinstance(value, dict) and isinstance(value.get("DATA"), dict):
        extra[key] = {**value, "DATA": {**value["DATA"], draw(st.sampled_from(sorted(value["DATA"]))): draw(VALUES)}}
    elif isinstance(value, str) and key == "config":
        lines = value.splitlines(keepends=True)
        del lines[draw(st.integers(0, len(lines) - 1))]
        extra[key] = "".join(lines)
    else:
        extra[key] = draw(VALUES)


# -------------------------------------------------------------------- the property


@cache
def target(name: str) -> tuple[Encoder, dict[str, Tensor]]:
    """An encoder for the clean file of a kind, and its weights."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        of = kind(name)
        encoder = load_encoder(write(Path(folder), of, of.weights(), of.extra(), of.holder), of.overrides, strict=False)
    return encoder, {key: weight.clone() for key, weight in encoder.state_dict().items()}


def check_case(folder: Path, case: Case) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, of layouts that it calls experimental
        path = write(folder, kind(case.kind), case.weights, case.extra, case.holder)
    check_file(folder, path, case.kind, case.overrides, case.action)


def check_file(folder: Path, path: Path, name: str, overrides: tuple[str, ...], action: str) -> None:
    """Features of the right shape, or a ValueError that names the file, with nothing changed and nothing written."""
    encoder, before = target(name)
    out, refusal = folder / "out", ""
    with warnings.catch_warnings(), logged():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*(Sparse|TypedStorage|quantiz|copy construct|nested).*")
        try:
            if action == "initialise":
                report = initialise_encoder(encoder, path)
                assert report.lines()
            elif action == "load":
                encoder = load_encoder(path, overrides, strict=False)
            else:
                convert(path, out, action, "", list(overrides))
        except ValueError as error:
            refusal = str(error)
    if refusal:
        assert path.name in refusal or re.search(r"[A-Z]{4,}\.[a-z]+", refusal), refusal  # of what it cannot write
        assert len(refusal) < LONGEST
        assert all(torch.equal(weight, before[key]) for key, weight in encoder.state_dict().items())
        assert not out.exists()
        return
    if action not in ("initialise", "load"):
        assert out.exists()
        return
    assert all(weight.isfinite().all() for weight in encoder.parameters())
    image = encoder.image
    with torch.no_grad():
        features = encoder(torch.zeros(1, image.channels, image.height, image.width))
    tokens = encoder.spec.grid[0] * encoder.spec.grid[1]
    assert features.tokens_BND.shape == (1, tokens, encoder.spec.width)
    if action == "initialise":
        encoder.load_state_dict(before)


@pytest.mark.parametrize("name", KINDS)
def test_fuzz_weights_start_from_files_that_load(tmp_path: Path, name: str) -> None:
    encoder, before = target(name)
    of = kind(name)
    report = initialise_encoder(encoder, write(tmp_path, of, of.weights(), of.extra(), of.holder))
    assert not report.missing or report.missing == ["mask_token"]
    encoder.load_state_dict(before)


@profile(15, 900)
def test_fuzz_weights_of_changed_files(tmp_path: Path, cases: int, explore: Explore) -> None:
    explore("weights changed", cases, cases_of(), lambda case: check_case(tmp_path / "case", case))


@st.composite
def damages(draw: st.DrawFn) -> tuple[str, list[tuple[float, int]], float]:
    """A kind, bytes of its file to change (as a share of its length, and what with), and how much of it is left."""
    spots = st.one_of(st.floats(0, 1, exclude_max=True), st.floats(0, 0.02), st.floats(0.9, 1, exclude_max=True))
    flips = draw(st.lists(st.tuples(spots, st.integers(1, 255)), max_size=4))
    share = draw(st.floats(0, 1)) if seldom(draw, 4) else 1.0
    return draw(st.sampled_from(sorted(KINDS))), flips, share


@profile(60, 1200)
def test_fuzz_weights_of_damaged_files(tmp_path: Path, cases: int, explore: Explore) -> None:
    def check(case: tuple[str, list[tuple[float, int]], float]) -> None:
        name, flips, share = case
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        of = kind(name)
        path = write(folder, of, of.weights(), of.extra(), of.holder)
        inside = path / "model.safetensors" if path.is_dir() else path
        content = bytearray(inside.read_bytes())
        for position, flip in flips:
            content[int(position * len(content))] ^= flip
        inside.write_bytes(content[: int(share * len(content))])
        check_file(folder, path, name, of.overrides, "load" if len(flips) == 2 else "initialise")

    explore("weights damaged", cases, damages(), check)
