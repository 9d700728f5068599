"""TRAIN.precision: what `auto` takes on which device, and what a run says of it."""

import json

import pytest
import torch
from processes import ESTIMATED, TINY, call

from mim.engine import cpu, precision
from mim.engine.precision import bf16_unit, describe_precision, product_dtype, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ZEN2 = {"avx2": True, "avx512_bf16": False, "architecture": "x86_64", "l2_cache_size": 1}
ZEN4 = ZEN2 | {"avx512_f": True, "avx512_bf16": True}
XEON4 = ZEN4 | {"amx_bf16": True}
GRAVITON2, GRAVITON3 = {"neon": True, "bf16": False}, {"neon": True, "bf16": True}


@pytest.mark.parametrize(
    ("capabilities", "unit", "auto"),
    [
        (ZEN2, "", "fp32"),
        (ZEN4, "avx512_bf16", "bf16"),
        (XEON4, "amx_bf16", "bf16"),
        (GRAVITON2, "", "fp32"),
        (GRAVITON3, "bf16", "bf16"),
    ],
)
def test_precision_auto_follows_the_bf16_products_of_the_cpu(monkeypatch, capabilities, unit, auto):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert bf16_unit(CPU) == unit
    assert resolve_precision("auto", CPU) == auto
    assert product_dtype("auto", CPU) == (torch.bfloat16 if unit else torch.float32)


def test_precision_auto_is_fp32_without_the_library_of_bf16_kernels(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: XEON4, raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("model name\t: Some CPU\nflags\t\t: fpu avx2 avx512_bf16\n", "avx512_bf16"),
        ("Features\t: fp asimd svebf16 bf16\n", "svebf16"),
        ("flags\t\t: fpu avx2 avx512f\n", ""),
        (None, ""),
    ],
)
def test_precision_reads_the_flags_of_linux_where_pytorch_reports_none(monkeypatch, tmp_path, text, unit):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(cpu, "CPU_INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    assert bf16_unit(CPU) == unit


@pytest.mark.parametrize(("native", "auto"), [(True, "bf16"), (False, "fp32")])
def test_precision_auto_on_a_gpu_takes_no_emulated_bf16(monkeypatch, native, auto):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or native)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    assert resolve_precision("auto", GPU) == auto
    assert ("Some GPU" in describe_precision(auto, GPU)) == native


@pytest.mark.parametrize("name", ["bf16", "fp16", "fp32"])
def test_precision_that_is_set_stays(monkeypatch, name):
    monkeypatch.setattr(precision, "bf16_unit", lambda device: "")
    assert resolve_precision(name, CPU) == name


@pytest.mark.parametrize(
    ("name", "unit", "words"),
    [
        ("bf16", "avx512_bf16", ("bf16", "avx512_bf16")),
        ("bf16", "", ("bf16", "emulates", "TRAIN.precision fp32")),
        ("fp32", "", ("fp32", "no bf16 products")),
        ("fp32", "amx_bf16", ("fp32", "amx_bf16")),
        ("fp16", "", ("fp16", "loss scaling")),
    ],
)
def test_precision_line_says_the_reason(monkeypatch, name, unit, words):
    monkeypatch.setattr(precision, "bf16_unit", lambda device: unit)
    assert all(word in describe_precision(name, CPU) for word in words)


@pytest.fixture
def emulating(monkeypatch):
    """This CPU as one without bf16 products; the function that is returned gives it some."""
    unit = {"name": ""}
    monkeypatch.setattr(precision, "bf16_unit", lambda device: unit["name"])
    return lambda name: unit.update(name=name)


@pytest.mark.slow
def test_run_keeps_the_precision_that_auto_chose(emulating, tmp_path):
    keys = TINY | {"TRAIN.precision": "auto", "TRAIN.epochs": 1}
    code, text = call(tmp_path / "run", keys)
    assert code == 0, text
    assert "fp32: this CPU has no bf16 products" in text
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "precision: fp32" in config
    emulating("avx512_bf16")
    (tmp_path / "run" / "summary.json").unlink()
    code, text = call(tmp_path / "run", keys)
    assert code == 0, text
    assert "resumed from" in text
    assert (tmp_path / "run" / "config.yaml").read_text() == config
    code, text = call(tmp_path / "other", keys)
    assert code == 0, text
    assert "precision: bf16" in (tmp_path / "other" / "config.yaml").read_text()


def test_run_says_at_its_start_what_it_computes_with(tmp_path):
    code, text = call(tmp_path, TINY | ESTIMATED)
    assert code == 0, text
    lines = {line.split("  ")[1]: line for line in text.splitlines() if line.startswith("  ")}
    assert "fp32" in lines["precision"]
    assert "CPU" in lines["devices"]
    assert "uint8" in lines["stored images"]
    mean = next(line for line in (tmp_path / "config.yaml").read_text().splitlines() if "mean:" in line)
    assert f"{float(mean.partition('[')[2].rstrip(']')):.4f}" in lines["mean and std"]
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["device"] == environment["cpu"]["name"]
    assert environment["cpu"]["cores"] >= 1
