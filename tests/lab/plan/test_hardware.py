"""Hardware on paper: figures of GPUs by name, their sources, and the time of a run on them."""

import pytest
from processes import RECIPE, ROOT

from mim import load_config
from mim.lab.plan import HardwareChoice, plan_run
from mim.lab.plan.gpus import GPUS
from mim.lab.plan.hardware import MEANINGS, Hardware

MAE = RECIPE.parents[1] / "mae" / "vit_base.yaml"
SHALLOW = ["ENCODER.depth", "1", "ENCODER.width", "192", "ENCODER.heads", "3", "HEAD.depth", "1"]
SHEETS = {  # bf16, fp16 and fp32 TFLOP/s, dense; GB; GB/s of the memory; GB/s of the links in one direction
    "t4": (None, 65, 8.1, 16, 320, 16),
    "v100": (None, 125, 15.7, 32, 900, 150),
    "a100-40": (312, 312, 19.5, 40, 1555, 300),
    "a100-80": (312, 312, 19.5, 80, 2039, 300),
    "h100": (989, 989, 67, 80, 3350, 450),
    "h200": (989, 989, 67, 141, 4800, 450),
    "l4": (121, 121, 30.3, 24, 300, 32),
    "l40s": (362, 362, 91.6, 48, 864, 32),
    "rtx3090": (71, 71, 35.6, 24, 936, 32),
    "rtx4090": (165.2, 165.2, 82.6, 24, 1008, 32),
}


def plan_on(*overrides: str, **arguments):
    return plan_run(load_config(MAE, [*SHALLOW, *overrides]), images=1_281_167, **arguments)


def test_gpus_have_the_figures_of_their_data_sheets():
    figures = {
        name: (gpu.bf16, gpu.fp16, gpu.fp32, gpu.memory_gb, gpu.memory_gb_s, gpu.link_gb_s)
        for name, gpu in GPUS.items()
    }
    assert figures == SHEETS
    assert all("data sheet" in gpu.source or "white paper" in gpu.source for gpu in GPUS.values())


@pytest.mark.parametrize(
    ("gpu", "precision", "resolved", "peak"),
    [
        ("a100-80", "auto", "bf16", 312),
        ("A100-80", "fp32", "fp32", 19.5),
        ("v100", "auto", "fp32", 15.7),
        ("v100", "fp16", "fp16", 125),
        ("", "bf16", "bf16", 989),
    ],
)
def test_hardware_has_the_peak_of_the_precision_that_the_gpu_takes(gpu, precision, resolved, peak):
    choice = HardwareChoice.read(gpu)
    assert choice.precision(precision) == resolved
    assert choice.hardware(precision).peak_tflops == peak


def test_hardware_of_the_default_gpu_is_the_default_hardware():
    hardware = HardwareChoice.read().hardware("bf16")
    assert {name: getattr(hardware, name) for name in MEANINGS} == {
        name: getattr(Hardware(), name) for name in MEANINGS
    }


def test_hardware_says_of_each_figure_that_it_is_assumed_and_from_where():
    hardware = HardwareChoice.read("l4", ["mfu=0.3"]).hardware("auto")
    assert set(hardware.sources) == set(MEANINGS)
    assert all(source.startswith("assumed: ") for source in hardware.sources.values())
    assert (hardware.mfu, hardware.sources["mfu"]) == (0.3, "assumed: --assume")
    assert hardware.sources["peak_tflops"] == "assumed: NVIDIA L4 data sheet, bf16"
    assert (hardware.node_gb_s, hardware.sources["node_gb_s"]) == (
        21.3,
        "assumed: two thirds of 32 GB/s of PCIe 4.0 x16",
    )


def test_hardware_refuses_products_that_the_gpu_only_emulates_unless_their_speed_is_given():
    with pytest.raises(ValueError, match=r"TRAIN.precision is bf16, and the NVIDIA T4 only emulates .* peak_tflops=N"):
        HardwareChoice.read("t4").hardware("bf16")
    assert HardwareChoice.read("t4", ["peak_tflops=4"]).hardware("bf16").peak_tflops == 4


@pytest.mark.parametrize(
    ("gpu", "words", "message"),
    [
        ("h1000", [], r"--gpu h1000: did you mean 'h100'\? Allowed: a100-40, a100-80, h100, .*--assume"),
        ("", ["mfy=1"], r"--assume mfy=1: .*did you mean 'mfu'"),
        ("", ["gpu=1"], r"--assume gpu=1: Allowed: "),
        ("", ["mfu"], r"--assume mfu: a number must follow"),
        ("", ["mfu=-1"], r"--assume mfu=-1: it must be positive"),
        ("", ["mfu=nan"], r"--assume mfu=nan: it must be positive"),
    ],
)
def test_hardware_refuses_unknown_names_and_values(gpu, words, message):
    with pytest.raises(ValueError, match=message):
        HardwareChoice.read(gpu, words)


# ---------------------------------------------------------------- in a plan


@pytest.mark.slow
def test_plan_of_one_number_of_devices_has_the_time_that_it_has_among_several():
    several = plan_on(other_devices=[8, 64])
    alone = plan_on(devices=64)
    assert several.scaling.rows[2] == alone.scaling.rows[0]
    assert (alone.scaling.rows[0].devices, alone.gpu) == (64, "NVIDIA H100 SXM5")
    assert alone.scaling.rows[0].images_per_s > 0
    assert plan_on().scaling is None


def test_plan_on_a_gpu_by_name_takes_the_time_of_its_data_sheet():
    plan = plan_on("DATA.batch_size", "64", "TRAIN.batch", "128", hardware=HardwareChoice.read("a100-80", ["mfu=0.5"]))
    (row,) = plan.scaling.rows
    operations = 128 * sum(part.training for part in plan.parts)
    trained = sum(part.trained for part in plan.parts)
    step_s = operations / (312e12 * 0.5) + 32 * trained / 2039e9  # 32 bytes a weight: AdamW
    assert row.costs["ddp"].step_s == pytest.approx(step_s)
    assert row.images_per_s == pytest.approx(128 / step_s)


@pytest.mark.slow
def test_plan_has_the_memory_and_the_precision_of_the_gpu_that_is_assumed():
    plan = plan_on("TRAIN.precision", "auto", hardware=HardwareChoice.read("v100"))
    fp16 = plan_on("TRAIN.precision", "fp16", hardware=HardwareChoice.read("v100"))
    assert (plan.precisions["gpu"], fp16.precisions["gpu"]) == ("fp32", "fp16")
    assert plan.gpu_memory == 32 * 2**30
    assert plan.memory["gpu"].activations > 1.2 * fp16.memory["gpu"].activations
    assert fp16.scaling.rows[0].images_per_s / plan.scaling.rows[0].images_per_s == pytest.approx(125 / 15.7, rel=0.1)


def test_docs_name_the_figures_of_every_gpu():
    rows = [line.split(" | ") for line in (ROOT / "docs" / "scaling.md").read_text().splitlines()]
    stated = {row[0].strip("| `"): row[1:6] for row in rows if row[0].strip("| `") in GPUS}

    def number(value: float | None) -> str:
        return "-" if value is None else f"{value:,}"

    assert stated == {name: [number(value) for value in sheet[:5]] for name, sheet in SHEETS.items()}
