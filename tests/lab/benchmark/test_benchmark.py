"""Benchmarks: arithmetic, rounds, peers, kernel classes, and the tables, files and pictures of a result."""

import io
import json
import re
from dataclasses import replace
from datetime import datetime

import pytest
import torch
import transformers
from PIL import Image
from processes import FINETUNE, RECIPE
from rich.console import Console
from rich.table import Table
from small_models import CPU

from mim import load_config
from mim.engine.distributed.world import World
from mim.lab.benchmark import BenchmarkSettings, to_json, write
from mim.lab.benchmark.ceiling import Ceiling, MatrixProduct
from mim.lab.benchmark.contenders import Contender, ours
from mim.lab.benchmark.files import section
from mim.lab.benchmark.kernel_classes import KERNEL_CLASSES, class_of
from mim.lab.benchmark.machine import Machine
from mim.lab.benchmark.peers import peer_of, transformers_contender
from mim.lab.benchmark.profile_picture import profile_picture
from mim.lab.benchmark.profiling import Operator, Profile
from mim.lab.benchmark.rounds import BatchResult, ContenderMetrics, Ratio, take_rounds
from mim.lab.benchmark.run import BenchmarkResult
from mim.lab.benchmark.tables import profile_tables, show, step_lines, step_tables
from mim.lab.console import markdown, new_table
from mim.lab.dryrun.measure import PhaseClock, TimedSteps
from mim.lab.dryrun.task import dry_task

ALONE = World(0, 1, CPU)
SMALL = (
    "TASK: pretrain\n"
    "DATA: {{name: digits, image_size: [64, 64], channels: 1, batch_size: 4, workers: 0, mean: [0.5], std: [0.5]}}\n"
    "MASKER: {{name: random, cell: 16, ratio: 0.6}}\n"
    "ENCODER: {{{encoder}}}\nHEAD: {{{head}}}\nTARGET: {{name: pixels}}\nTRAIN: {{precision: fp32, clip: 5.0}}\n"
)
PIXELS, DECODER = "name: pixel_shuffle", "name: transformer, width: 16, depth: 1, heads: 2"
SWIN = "name: swin, patch: 4, width: 8, depths: [1, 1], heads: [1, 2], window: 4"
PLAIN = "patch: 8, width: 16, depth: 2, heads: 2"
PEERS = {
    "ViTMAEForPreTraining": (f"name: vit, hidden: drop, {PLAIN}", DECODER),
    "ViTForMaskedImageModeling": (f"name: vit, hidden: replace, {PLAIN}", PIXELS),
    "SwinForMaskedImageModeling": (SWIN, PIXELS),
    "Swinv2ForMaskedImageModeling": (SWIN.replace("swin", "swin_v2"), PIXELS),
}


def small(tmp_path, encoder: str, head: str, *overrides: str):
    """A config, bare, with one step an epoch."""
    file = tmp_path / "recipe.yaml"
    file.write_text(SMALL.format(encoder=encoder, head=head))
    return dry_task(load_config(file, overrides))


# ---------------------------------------------------------------- arithmetic


def contender(name: str = "ours", flops: int | None = 10**9) -> Contender:
    return Contender(name=name, model="a model", parameters=10, flops=flops, make=lambda on_phase: lambda: None)


def metrics_of(name: str, *rounds: float, batch: int = 8, real: bool = False) -> ContenderMetrics:
    """One step per round: .01 s of data, and of the given time half forward, a quarter backward, a quarter update."""
    steps = [{"batch": 0.01, "forward": s / 2, "backward": s / 4, "update": s / 4} for s in rounds]
    times = tuple((step,) for step in steps)
    return ContenderMetrics(
        contender=contender(name), batch=batch, real=real, rounds=times, tensors=2**30, process=None
    )


def result_of(*metrics: ContenderMetrics, profiles: tuple[Profile, ...] = (), **settings) -> BenchmarkResult:
    batches = sorted({each.batch for each in metrics})
    results = [
        BatchResult(batch=batch, steps=1, metrics=tuple(each for each in metrics if each.batch == batch))
        for batch in batches
    ]
    names = tuple(dict.fromkeys(each.contender.name for each in metrics if each.contender.name != "ours"))
    return BenchmarkResult(
        theme="mae_small",
        machine=Machine(device="Some(R) CPU @ 2 GHz", threads=2, versions={"torch": "2.11"}, system="Linux"),
        date=datetime(2026, 1, 2, 3, 4, 5),
        precision="bf16",
        settings=BenchmarkSettings(against=names, rounds=3, **settings),
        results=tuple(results),
        ceiling=MatrixProduct(1024, 1e12),
        profiles=profiles,
    )


def test_metrics_are_medians_over_rounds_without_the_making_of_random_images():
    metrics = metrics_of("ours", 0.4, 0.1, 0.2)
    assert metrics.step_s == pytest.approx(0.2)
    assert metrics.images_per_s == pytest.approx(8 / 0.2)
    assert metrics.phase_s("batch") is None
    assert metrics.phase_s("forward") == pytest.approx(0.1)
    real = replace(metrics, real=True)
    assert real.step_s == pytest.approx(0.21)
    assert real.phase_s("batch") == pytest.approx(0.01)


def test_ratio_is_the_quotient_of_medians_with_the_spread_of_rounds():
    ratio = Ratio.of(metrics_of("ours", 0.1, 0.2, 0.3), metrics_of("eager", 0.2, 0.2, 1.2))
    assert (ratio.against, ratio.ratio) == ("eager", pytest.approx(1.0))
    assert (ratio.low, ratio.high) == (pytest.approx(1.0), pytest.approx(4.0))
    assert Ratio.of(metrics_of("ours", 0.1, batch=16), metrics_of("eager", 0.1, batch=8)).ratio == pytest.approx(2.0)


def test_utilisation_is_operations_by_time_by_the_ceiling():
    metrics, ceiling = metrics_of("ours", 0.5), MatrixProduct(64, 32e9)
    assert metrics.utilisation(ceiling) == pytest.approx(8e9 / 0.5 / 32e9)
    assert replace(metrics, contender=contender(flops=None)).utilisation(ceiling) is None


def test_ceiling_keeps_the_best_product():
    ceiling = Ceiling(torch.float32, CPU)
    ceiling.measure()
    first = ceiling.best
    assert first.side >= 1024
    assert first.flops > 1e8
    ceiling.measure()
    assert ceiling.best.side == first.side
    assert ceiling.best.flops >= first.flops


def test_clock_gives_each_phase_of_each_step(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0, 28.0, 36.0, 45.0])
    monkeypatch.setattr("mim.lab.dryrun.measure.time.perf_counter", lambda: next(now))
    clock = PhaseClock(CPU)
    for _ in range(2):
        for phase in ("batch", "forward", "backward", "update", "end"):
            clock.on_phase(phase)
    first, second = clock.read()
    assert first == {"batch": 1.0, "forward": 2.0, "backward": 3.0, "update": 4.0 + 5.0}  # and what lies between
    assert second == {"batch": 6.0, "forward": 7.0, "backward": 8.0, "update": 9.0}
    assert clock.read() == []


def test_take_rounds_alternates_and_a_contender_out_of_memory_fails_alone():
    log: list[str] = []

    def make(name: str, fails_at: int = -1):
        def build(on_phase):
            def step():
                log.append(name)
                if log.count(name) == fails_at:
                    raise torch.OutOfMemoryError("too much")
                for phase in ("batch", "forward", "backward", "update", "end"):
                    on_phase(phase)

            return step

        return replace(contender(name), make=build)

    ceiling = Ceiling(torch.float32, CPU)
    ceiling.best = MatrixProduct(64, 1.0)
    result, trainers = take_rounds([make("ours"), make("eager")], ceiling, CPU, batch=2, rounds=2, steps=2)
    assert log[4:] == ["ours"] * 3 + ["eager"] * 3 + ["ours"] * 3 + ["eager"] * 3  # one of three does not count
    assert [len(each.rounds) for each in result.metrics] == [2, 2]
    assert {len(steps) for each in result.metrics for steps in each.rounds} == {2}
    assert (result.out_of_memory, set(trainers)) == ((), {"ours", "eager"})
    for fails_at in (1, 4):  # while it is built, and later
        log.clear()
        result, trainers = take_rounds(
            [make("ours"), make("eager", fails_at)], ceiling, CPU, batch=2, rounds=2, steps=2
        )
        assert (result.out_of_memory, set(trainers)) == (("eager",), {"ours"})
        assert len(result.of("ours").rounds) == 2
        assert result.ratios() == []


# ---------------------------------------------------------------- contenders


def test_ours_is_the_engines_own_step(tmp_path):
    dry = small(tmp_path, *PEERS["ViTMAEForPreTraining"])
    peer = ours(dry, dry.plan(1), ALONE, real=False)
    assert peer.flops == dry.task.model_summary.flops
    assert peer.parameters == sum(weight.numel() for weight in dry.build_model().parameters() if weight.requires_grad)
    timed = TimedSteps(peer.make, CPU)
    steps = timed.take(2)
    assert [set(step) for step in steps] == [{"batch", "forward", "backward", "update"}] * 2
    assert timed.tensors > 4 * 4 * peer.parameters  # weights, gradients, two moments
    trainer = timed._step.__self__
    assert trainer.step == 4


@pytest.mark.parametrize("name", PEERS)
def test_peer_is_of_the_same_size(tmp_path, name):
    dry = small(tmp_path, *PEERS[name])
    peer = transformers_contender(dry, dry.plan(1), CPU)
    our_contender = ours(dry, dry.plan(1), ALONE, real=False)
    assert peer.model.startswith(f"{name}, {'eager' if 'v2' in name else 'sdpa'} attention")
    extra = 0
    if name == "ViTForMaskedImageModeling":  # its positions are learned
        extra = 65 * 16
        assert any("learned positions" in note for note in peer.differences)
    assert peer.parameters == our_contender.parameters + extra
    # theirs embeds hidden patches and predicts the class token; its Swin V2 makes its biases for each image anew
    assert our_contender.flops <= peer.flops < (1.2 if "v2" in name else 1.06) * our_contender.flops


def test_peer_of_several_targets_is_refused(tmp_path):
    dry = small(tmp_path, *PEERS["ViTMAEForPreTraining"], "TARGET", "[{name: pixels}, {name: pixels, stride: 2}]")
    with pytest.raises(ValueError, match="predict pixels at full resolution"):
        peer_of(dry)


def test_peer_of_simmims_vit_says_in_what_it_differs(tmp_path):
    dry = small(tmp_path, f"name: beit, drop_path: 0.1, {PLAIN}", PIXELS)
    peer = peer_of(dry)
    assert peer.name == "ViTForMaskedImageModeling"
    assert ["relative-position" in note or "drop path" in note for note in peer.differences] == [True, True]


def test_peer_of_mae_sees_as_many_patches(tmp_path):
    for ratio in ("0.3", "0.5", "0.75", "0.9"):
        dry = small(tmp_path, *PEERS["ViTMAEForPreTraining"], "MASKER.cell", "8", "MASKER.ratio", ratio)
        model = peer_of(dry).build()
        hidden_BN = model(torch.rand(2, 1, 64, 64)).mask
        assert [int(count) for count in (1 - hidden_BN).sum(1)] == [dry.task.model.masker.visible] * 2
        assert model.config.norm_pix_loss is (dry.cfg.TARGET.normalize == "patch")


@pytest.mark.parametrize("fused", [pytest.param(True, marks=pytest.mark.slow), False])
def test_peer_has_the_optimizer_that_its_name_says(tmp_path, fused):
    dry = small(tmp_path, *PEERS["ViTMAEForPreTraining"])
    peer = transformers_contender(dry, dry.plan(1), CPU, fused=fused)
    assert peer.name == ("transformers" if fused else "transformers-unfused")
    steps = TimedSteps(peer.make, CPU)._step.__self__
    assert [bool(group["fused"]) for group in steps.optimizer.param_groups] == [fused] * 2


@pytest.mark.slow
@pytest.mark.parametrize("name", PEERS)
def test_peer_trains(tmp_path, name):
    dry = small(tmp_path, *PEERS[name])
    timed = TimedSteps(transformers_contender(dry, dry.plan(1), CPU).make, CPU)
    steps = timed._step.__self__
    assert isinstance(steps.model, getattr(transformers, name))
    assert steps.model.training
    before = [weight.clone() for weight in steps.parameters]
    assert [set(step) for step in timed.take(2)] == [{"batch", "forward", "backward", "update"}] * 2
    moved = [not torch.equal(old, weight) for old, weight in zip(before, steps.parameters, strict=True)]
    assert all(moved)
    assert all(weight.grad is None for weight in steps.parameters)
    if name != "ViTMAEForPreTraining":
        mask_BN = steps._inputs()["bool_masked_pos"]
        assert [round(float(share), 3) for share in mask_BN.float().mean(1)] == [dry.task.model.masker.ratio] * 4


@pytest.mark.parametrize(
    ("encoder", "head", "overrides", "message"),
    [
        (f"name: vit, hidden: drop, {PLAIN}", DECODER, ["TARGET.stride", "2"], "TARGET.stride 1"),
        (f"name: vit, hidden: replace, {PLAIN}", DECODER, [], "HEAD.name transformer has no peer"),
        (f"name: vit, hidden: drop, {PLAIN}", DECODER, ["HEAD.stages", "[0]"], r"HEAD.stages \[0\] has no peer"),
        (f"name: vit, hidden: replace, {PLAIN}", PIXELS, ["TARGET.normalize", "patch"], "TARGET.normalize patch"),
        (f"name: vit, hidden: drop, class_token: false, {PLAIN}", DECODER, [], "ENCODER.class_token is false"),
        (SWIN, PIXELS, ["DATA.image_size", "[64, 32]"], "DATA.image_size is"),
        (SWIN, PIXELS, ["OPTIMIZER.name", "lars"], "OPTIMIZER.name is lars"),
        (SWIN.replace("window: 4", "window: 16"), PIXELS, [], "ENCODER.window 16"),
    ],
)
def test_peer_is_refused_where_there_is_none(tmp_path, encoder, head, overrides, message):
    with pytest.raises(ValueError, match=message) as error:
        peer_of(small(tmp_path, encoder, head, *overrides))
    assert "--against transformers" in str(error.value)


def test_peer_of_a_classification_is_refused():
    with pytest.raises(ValueError, match="TASK is finetune"):
        peer_of(dry_task(load_config(FINETUNE)))


# ---------------------------------------------------------------- kernel classes

NAMES = {
    "matrix products": [
        *("aten::mm", "aten::addmm", "aten::convolution_backward", "aten::mkldnn_convolution", "mkldnn::_linear"),
        *("triton_tem_fused_addmm_12", "mim::row_major_product", "cpp_CppMicroGemmAMX"),
    ],
    "attention": [
        *("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
        *("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "graph_0_cpp_fused__softmax_mul_view_4"),
        *("triton_per_fused__softmax_backward_data_3", "triton_tem_fused_flex_attention_backward_1"),
    ],
    "normalisation": [
        *("aten::native_layer_norm", "aten::native_layer_norm_backward"),
        *("graph_0_cpp_fused__to_copy__unsafe_view_add_native_layer_norm_19", "triton_red_fused_native_layer_norm_2"),
    ],
    "activation functions": ["aten::gelu", "aten::gelu_backward", "triton_poi_fused_addmm_gelu_5"],
    "element-wise and sums": [
        *("aten::add", "aten::mul", "aten::sum", "aten::var", "aten::div", "graph_0_cpp_fused_abs_mul_sum_1"),
        "triton_poi_fused_add_convolution_0",
    ],
    "copies and casts": [
        *("aten::copy_", "aten::cat", "aten::fill_", "aten::gather", "aten::_foreach_copy_", "aten::slice_backward"),
        *("graph_0_cpp_fused__to_copy_0", "triton_poi_fused__unsafe_view_clone_transpose_7", "aten::_to_copy"),
    ],
    "optimizer": [
        *("aten::_fused_adamw_", "Optimizer.step#AdamW.step", "aten::linalg_vector_norm", "aten::_foreach_norm"),
    ],
    "other": [
        *("aten::view", "aten::empty", "aten::sort", "aten::random_", "cudaLaunchKernel", "aten::t", "aten::item"),
        *("TorchDynamo Cache Lookup", "CompiledFunctionBackward", "## Call CompiledFxGraph abc ##", "AddmmBackward0"),
        *("autograd::engine::evaluate_function: AddmmBackward0", "torch::autograd::AccumulateGrad"),
    ],
}


@pytest.mark.parametrize("kernel_class", NAMES)
def test_kernel_class_follows_from_the_name(kernel_class):
    assert {name: class_of(name) for name in NAMES[kernel_class]} == dict.fromkeys(NAMES[kernel_class], kernel_class)


def test_kernel_classes_of_a_profile_add_up_to_the_step():
    assert set(NAMES) == set(KERNEL_CLASSES)
    profile = Profile("ours", "cpu", tuple(Operator(names[0], name, 1, 0.1) for name, names in NAMES.items()))
    assert list(profile.class_seconds()) == list(KERNEL_CLASSES)
    assert sum(profile.class_seconds().values()) == pytest.approx(profile.seconds) == pytest.approx(0.8)


# ---------------------------------------------------------------- text and files

PROFILE = Profile("ours", "cpu", tuple(Operator(f"aten::{'x' * 99}{n}", "other", 3, 0.2 / n) for n in range(1, 30)))


def columns(table: Table) -> dict[str, list[str]]:
    return {str(column.header).replace("\n", " "): list(map(str, column.cells)) for column in table.columns}


def test_tables_hold_what_was_measured():
    result = result_of(metrics_of("ours", 0.1), metrics_of("transformers", 0.25))
    time, work = map(columns, step_tables(result).values())
    assert time["images/s"] == ["80", "32"]
    assert time["ms a step"] == ["100", "250"]
    assert "data" not in time
    assert work["MFU"] == ["8.0%", "3.2%"]
    assert step_lines(result) == ["ours / transformers: 2.50 times the images a second (2.50 to 2.50 by round)"]
    assert columns(step_tables(result_of(metrics_of("ours", 0.1, real=True), real=True))["Time"])["data"] == ["10"]


def test_tables_of_several_batches_name_the_best_of_each_contender():
    result = result_of(
        *(metrics_of("ours", 0.1, batch=8), metrics_of("ours", 0.1, batch=16)),
        *(metrics_of("eager", 0.1, batch=8), metrics_of("eager", 0.4, batch=16)),
    )
    failed = BatchResult(batch=32, steps=1, metrics=(), out_of_memory=("ours", "eager"))
    result = replace(result, results=(*result.results, failed))
    time = columns(step_tables(result)["Time"])
    assert time["batch"] == ["8", "8", "16", "16", "32", "32"]
    assert time["images/s"][4:] == ["out of memory"] * 2
    assert result.best.batch == 16
    assert "Best batch of eager: 8, 80 images/s" in step_lines(result)
    assert step_lines(result)[-1].startswith("ours / eager, each at its best batch: 2.00 times")


def test_terminal_of_80_columns_cuts_no_number():
    names = ("ours", "transformers", "transformers-compiled", "eager")
    all_metrics = [metrics_of(name, 0.1234, batch=batch) for name in names for batch in (8, 1024)]
    all_metrics = [replace(each, contender=replace(each.contender, parameters=1_987_654_321)) for each in all_metrics]
    console = Console(width=80, file=io.StringIO())
    show(result_of(*all_metrics, profiles=(PROFILE,)), console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("1,987,654,321" in line for line in lines) == 2 * len(names)


def test_picture_of_four_contenders_cuts_no_name():
    contenders = {f"transformers-compiled {n}": {"attention": 1234.0, "other": 1234.0} for n in range(4)}
    with Image.open(io.BytesIO(profile_picture("title", "subtitle", contenders))) as picture:
        margin = picture.convert("L").crop((picture.width - 3, 0, picture.width, picture.height))
    assert margin.getextrema() == (255, 255)


def test_operator_table_is_short():
    names = columns(profile_tables([PROFILE])["Operators of ours"])[""]
    assert len(names) == 15
    assert max(map(len, names)) <= 48


def test_markdown_holds_every_cell_and_aligns_numbers():
    table = new_table("", "kind", "ms\na step", words=2)
    table.add_row("a", "b c", "1,234")
    table.add_row("longer", "", "5")
    head, rule, *rows = markdown(table).splitlines()
    assert [cell.strip() for cell in head.split("|")] == ["", "", "kind", "ms a step", ""]
    assert rule == "|---|---|---:|"
    assert [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows] == [
        ["a", "b c", "1,234"],
        ["longer", "", "5"],
    ]


def test_write_adds_to_the_file_of_the_day_and_loses_nothing(tmp_path):
    words = ["--config", "configs/mae/small.yaml", "DATA.path", "a b"]
    result = result_of(metrics_of("ours", 0.1), metrics_of("eager", 0.2), profiles=(PROFILE,))
    file, picture = write(result, tmp_path / "new", words)
    assert file.name == "mae_small_some-2-threads_2026-01-02.md"
    text = file.read_text()
    assert text.startswith("# mae_small on Some(R) CPU @ 2 GHz, threads: 2, 2026-01-02\n\n## 03:04: batch 8, bf16\n")
    assert "python tools/benchmark.py --config configs/mae/small.yaml DATA.path 'a b'" in text
    assert "torch 2.11" in text
    assert f"]({picture.name})" in text
    assert re.search(r"^\| ours +\| +80 \| +100 \|", text, re.MULTILINE)
    later = replace(result, date=datetime(2026, 1, 2, 5, 6, 7))
    assert write(later, tmp_path / "new", words)[1] != picture
    assert file.read_text() == f"{text}\n{section(later, words, picture.name.replace('030405', '050607'))}"


def test_json_holds_everything():
    values = to_json(result_of(metrics_of("ours", 0.1), metrics_of("eager", 0.2)), ["--config", "x.yaml"])
    contenders = values["batches"][0]["contenders"]
    ratio = contenders["ours"]["images_per_s"] / contenders["eager"]["images_per_s"]
    assert ratio == values["batches"][0]["ratios"][0]["ratio"]
    assert contenders["ours"]["mfu"] == pytest.approx(0.08)
    assert values["command"] == "python tools/benchmark.py --config x.yaml"
    assert json.loads(json.dumps(values)) == values


def test_profile_picture_shows_every_class_of_every_contender():
    times = dict.fromkeys(KERNEL_CLASSES, 10.0)
    one, two = (
        Image.open(io.BytesIO(profile_picture("a title", "a line", {str(n): times for n in range(count)})))
        for count in (1, 2)
    )
    assert one.width == two.width == 1350
    assert two.height > one.height + 8 * 20
    assert len(set(two.convert("RGB").resize((135, 90)).get_flattened_data())) > 10


def test_machine_has_a_name_for_files():
    machine = Machine.here(CPU)
    assert machine.slug.endswith(f"-{torch.get_num_threads()}-threads")
    assert set(machine.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert "torch" in machine.versions
    gpu = Machine(device="NVIDIA H200", threads=None, versions={}, system="")
    assert (gpu.slug, str(gpu)) == ("nvidia-h200", "NVIDIA H200")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"against": ("timm",)}, "--against is timm"),
        ({"against": ("eager", "eager")}, "--against names a contender twice"),
        ({"batches": (8, 0)}, "--batch-sizes is 8 0"),
        ({"rounds": 0}, "--rounds is 0"),
    ],
)
def test_benchmark_settings_refuse_what_cannot_run(values, message):
    with pytest.raises(ValueError, match=message):
        BenchmarkSettings(**values)


def test_eager_is_refused_where_ours_is_eager():
    dry = dry_task(load_config(RECIPE))
    with pytest.raises(ValueError, match="--against eager: TRAIN"):
        ours(dry, dry.plan(1), ALONE, real=False, compiled=False)
