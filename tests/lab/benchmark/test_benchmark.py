"""Benchmarks: their arithmetic, kinds of work, the peers, and what an outcome becomes in words, tables and pictures."""

import io
from dataclasses import replace
from datetime import datetime

import pytest
import torch
import transformers
from PIL import Image
from processes import FINETUNE, RECIPE
from rich.console import Console
from small_models import CPU

from mim import load_config
from mim.engine.distributed.world import World
from mim.lab.benchmark import Asked, figures, write
from mim.lab.benchmark.ceiling import Ceiling, Product, utilisation
from mim.lab.benchmark.contenders import Side, ours
from mim.lab.benchmark.files import section
from mim.lab.benchmark.kernel_classes import KINDS, kind_of
from mim.lab.benchmark.machine import Machine
from mim.lab.benchmark.peers import peer_of, transformers_side
from mim.lab.benchmark.profile_picture import Bars, profile_picture
from mim.lab.benchmark.profiling import Operator, Profile
from mim.lab.benchmark.rounds import Figures, Turns, ratio, take_turns
from mim.lab.benchmark.run import Outcome
from mim.lab.benchmark.tables import Table, operator_table, ratio_lines, time_table, work_table
from mim.lab.benchmark.terminal import show
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


def side(name: str = "ours", flops: int | None = 10**9) -> Side:
    return Side(name=name, model="a model", parameters=10, flops=flops, make=lambda on_phase: lambda: None)


def taken(name: str, *rounds: float, batch: int = 8, real: bool = False) -> Figures:
    """Figures of one step a round, each with .01 s of data, a half forward, a quarter backward, a quarter update."""
    steps = [{"batch": 0.01, "forward": all_ / 2, "backward": all_ / 4, "update": all_ / 4} for all_ in rounds]
    return Figures(
        side=side(name), batch=batch, real=real, rounds=tuple((step,) for step in steps), tensors=2**30, process=None
    )


def outcome(*sides: Figures, profiles: tuple[Profile, ...] = (), **asked) -> Outcome:
    batches = sorted({found.batch for found in sides})
    tries = [
        Turns(batch=batch, turn=1, figures=tuple(found for found in sides if found.batch == batch)) for batch in batches
    ]
    names = tuple(dict.fromkeys(found.side.name for found in sides if found.side.name != "ours"))
    machine = Machine(device="Some(R) CPU @ 2 GHz", threads=2, memory=None, versions={"torch": "2.11"}, system="Linux")
    return Outcome(
        theme="mae_small",
        machine=machine,
        date=datetime(2026, 1, 2, 3, 4, 5),
        precision="bf16",
        asked=Asked(against=names, rounds=3, **asked),
        tries=tuple(tries),
        ceiling=Product(1024, 1e12),
        profiles=profiles,
    )


def test_figures_are_medians_over_rounds_without_the_making_of_random_images():
    found = taken("ours", 0.4, 0.1, 0.2)
    assert found.step_s == pytest.approx(0.2)
    assert found.images_per_s == pytest.approx(8 / 0.2)
    assert found.phase_s("batch") is None
    assert found.phase_s("forward") == pytest.approx(0.1)
    real = replace(found, real=True)
    assert real.step_s == pytest.approx(0.21)
    assert real.phase_s("batch") == pytest.approx(0.01)


def test_ratio_is_the_quotient_of_medians_with_the_spread_of_rounds():
    found = ratio(taken("ours", 0.1, 0.2, 0.3), taken("eager", 0.2, 0.2, 1.2))
    assert (found.against, found.ratio) == ("eager", pytest.approx(1.0))
    assert (found.low, found.high) == (pytest.approx(1.0), pytest.approx(4.0))
    assert ratio(taken("ours", 0.1, batch=16), taken("eager", 0.1, batch=8)).ratio == pytest.approx(2.0)


def test_utilisation_is_operations_by_time_by_the_ceiling():
    assert utilisation(3 * 10**12, 2.0, Product(1024, 6e12)) == pytest.approx(0.25)
    assert utilisation(None, 2.0, Product(1024, 6e12)) is None
    assert taken("ours", 0.5).utilisation(Product(64, 32e9)) == pytest.approx(8e9 / 0.5 / 32e9)


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


def test_take_turns_alternates_and_a_side_without_memory_fails_alone():
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

        return replace(side(name), make=build)

    ceiling = Ceiling(torch.float32, CPU)
    ceiling.best = Product(64, 1.0)
    found, timed = take_turns([make("ours"), make("eager")], ceiling, CPU, batch=2, rounds=2, turn=2)
    assert log[4:] == ["ours"] * 3 + ["eager"] * 3 + ["ours"] * 3 + ["eager"] * 3  # one of three does not count
    assert [len(held.rounds) for held in found.figures] == [2, 2]
    assert {len(steps) for held in found.figures for steps in held.rounds} == {2}
    assert (found.failed, set(timed)) == ((), {"ours", "eager"})
    for fails_at in (1, 4):  # while it is built, and later
        log.clear()
        found, timed = take_turns([make("ours"), make("eager", fails_at)], ceiling, CPU, batch=2, rounds=2, turn=2)
        assert (found.failed, set(timed)) == (("eager",), {"ours"})
        assert len(found.of("ours").rounds) == 2
        assert found.ratios() == []


# ---------------------------------------------------------------- sides


def test_ours_is_the_engines_own_step(tmp_path):
    held = small(tmp_path, *PEERS["ViTMAEForPreTraining"])
    side_ = ours(held, held.plan(1), ALONE, real=False)
    assert side_.flops == held.task.model_summary.flops
    assert side_.parameters == sum(weight.numel() for weight in held.build_model().parameters() if weight.requires_grad)
    timed = TimedSteps(side_.make, CPU)
    steps = timed.take(2)
    assert [set(step) for step in steps] == [{"batch", "forward", "backward", "update"}] * 2
    assert timed.tensors > 4 * 4 * side_.parameters  # weights, gradients, two moments
    trainer = timed._step.__self__
    assert trainer.step == 4


@pytest.mark.parametrize("name", PEERS)
def test_peer_is_of_the_same_size(tmp_path, name):
    held = small(tmp_path, *PEERS[name])
    side_ = transformers_side(held, held.plan(1), CPU)
    own = ours(held, held.plan(1), ALONE, real=False)
    assert side_.model.startswith(f"{name}, {'eager' if 'v2' in name else 'sdpa'} attention")
    extra = 0
    if name == "ViTForMaskedImageModeling":  # its positions are learned
        extra = 65 * 16
        assert any("learned positions" in note for note in side_.notes)
    assert side_.parameters == own.parameters + extra
    # theirs embeds hidden patches and predicts the class token; its Swin V2 makes its biases for each image anew
    assert own.flops <= side_.flops < (1.2 if "v2" in name else 1.06) * own.flops


def test_peer_of_simmims_vit_says_in_what_it_differs(tmp_path):
    held = small(tmp_path, f"name: beit, drop_path: 0.1, {PLAIN}", PIXELS)
    found = peer_of(held)
    assert found.name == "ViTForMaskedImageModeling"
    assert ["relative-position" in note or "drop path" in note for note in found.notes] == [True, True]


def test_peer_of_mae_sees_as_many_patches(tmp_path):
    for ratio_ in ("0.3", "0.5", "0.75", "0.9"):
        held = small(tmp_path, *PEERS["ViTMAEForPreTraining"], "MASKER.cell", "8", "MASKER.ratio", ratio_)
        model = peer_of(held).build()
        hidden_BN = model(torch.rand(2, 1, 64, 64)).mask
        assert [int(count) for count in (1 - hidden_BN).sum(1)] == [held.task.model.masker.visible] * 2
        assert model.config.norm_pix_loss is (held.cfg.TARGET.normalize == "patch")


@pytest.mark.parametrize("fused", [True, False])
def test_peer_has_the_optimizer_that_its_name_says(tmp_path, fused):
    held = small(tmp_path, *PEERS["ViTMAEForPreTraining"])
    found = transformers_side(held, held.plan(1), CPU, fused=fused)
    assert found.name == ("transformers" if fused else "transformers-unfused")
    steps = TimedSteps(found.make, CPU)._step.__self__
    assert [bool(group["fused"]) for group in steps.optimizer.param_groups] == [fused] * 2


@pytest.mark.parametrize("name", PEERS)
def test_peer_trains(tmp_path, name):
    held = small(tmp_path, *PEERS[name])
    timed = TimedSteps(transformers_side(held, held.plan(1), CPU).make, CPU)
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
        assert [round(float(share), 3) for share in mask_BN.float().mean(1)] == [held.task.model.masker.ratio] * 4


@pytest.mark.parametrize(
    ("encoder", "head", "overrides", "message"),
    [
        (f"name: vit, hidden: drop, {PLAIN}", DECODER, ["TARGET.stride", "2"], "TARGET.stride 1"),
        (f"name: vit, hidden: replace, {PLAIN}", DECODER, [], "HEAD.name transformer has no peer"),
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


# ---------------------------------------------------------------- kinds of work

WORK = {
    "matrix products": [
        *("aten::mm", "aten::addmm", "aten::convolution_backward", "aten::mkldnn_convolution", "mkldnn::_linear"),
        *("nvjet_sm90_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n"),
        *("void cutlass::Kernel2<cutlass_80_tensorop_bf16_s16816gemm>", "triton_tem_fused_addmm_12"),
        *("void gemv2T_kernel_val<int, int>", "mim::row_major_product"),
    ],
    "attention": [
        *("aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::_softmax_backward_data"),
        *("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "graph_0_cpp_fused__softmax_mul_view_4"),
        *("fmha_cutlassB_bf16_aligned_64x64_k64_sm80", "void pytorch_flash::flash_fwd_kernel<traits>"),
        *("triton_per_fused__softmax_backward_data_3", "triton_tem_fused_flex_attention_backward_1"),
    ],
    "normalisation": [
        *("aten::native_layer_norm", "aten::native_layer_norm_backward"),
        *("graph_0_cpp_fused__to_copy__unsafe_view_add_native_layer_norm_19", "triton_red_fused_native_layer_norm_2"),
        "void at::native::(anonymous namespace)::vectorized_layer_norm_kernel<float, float>",
    ],
    "activation functions": [
        *("aten::gelu", "aten::gelu_backward", "triton_poi_fused_addmm_gelu_5"),
        *("void at::native::vectorized_elementwise_kernel<4, at::native::GeluCUDAKernelImpl>",),
    ],
    "element-wise and sums": [
        *("aten::add", "aten::mul", "aten::sum", "aten::var", "aten::div", "graph_0_cpp_fused_abs_mul_sum_1"),
        *("triton_poi_fused_add_convolution_0", "void at::native::reduce_kernel<512, 1, at::native::sum_functor>"),
        "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float> >",
    ],
    "copies and casts": [
        *("aten::copy_", "aten::cat", "aten::fill_", "aten::gather", "aten::_foreach_copy_", "Memcpy HtoD (Pinned)"),
        *("graph_0_cpp_fused__to_copy_0", "triton_poi_fused__unsafe_view_clone_transpose_7", "Memset (Device)"),
        "void at::native::elementwise_kernel<128, 4, at::native::direct_copy_kernel_cuda>",
    ],
    "optimizer": [
        *("aten::_fused_adamw_", "Optimizer.step#AdamW.step", "aten::linalg_vector_norm", "aten::_foreach_norm"),
        "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedOptimizer, FusedAdamMathFunctor>",
    ],
    "other": [
        *("aten::view", "aten::empty", "aten::sort", "aten::randint".replace("randint", "random_"), "cudaLaunchKernel"),
        *("TorchDynamo Cache Lookup", "CompiledFunctionBackward", "## Call CompiledFxGraph abc ##", "AddmmBackward0"),
        *("autograd::engine::evaluate_function: AddmmBackward0", "torch::autograd::AccumulateGrad"),
    ],
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in WORK.items() for name in names])
def test_kind_of_work_follows_from_the_name(kind, name):
    assert kind_of(name) == kind


def test_kinds_of_a_profile_make_its_whole():
    assert set(WORK) == set(KINDS)
    found = Profile("ours", "cpu", tuple(Operator(names[0], kind, 1, 0.1) for kind, names in WORK.items()))
    assert list(found.kinds()) == list(KINDS)
    assert sum(found.kinds().values()) == pytest.approx(found.seconds) == pytest.approx(0.8)


# ---------------------------------------------------------------- words and files

PROFILE = Profile("ours", "cpu", tuple(Operator(f"aten::{'x' * 99}{n}", "other", 3, 0.2 / n) for n in range(1, 30)))


def columns(table: Table) -> dict[str, list[str]]:
    return {head: [row[place] for row in table.rows] for place, head in enumerate(table.heads)}


def test_tables_hold_what_was_measured():
    found = outcome(taken("ours", 0.1), taken("transformers", 0.25))
    time = columns(time_table(found))
    assert time["images/s"] == ["80", "32"]
    assert time["ms a step"] == ["100", "250"]
    assert "data" not in time
    assert columns(work_table(found))["MFU"] == ["8.0%", "3.2%"]
    assert ratio_lines(found) == ["ours / transformers: 2.50 times the images a second (2.50 to 2.50 by round)"]
    assert columns(time_table(outcome(taken("ours", 0.1, real=True), real=True)))["data"] == ["10"]


def test_tables_of_several_batches_name_the_best_of_each_side():
    found = outcome(
        *(taken("ours", 0.1, batch=8), taken("ours", 0.1, batch=16)),
        *(taken("eager", 0.1, batch=8), taken("eager", 0.4, batch=16)),
    )
    found = replace(found, tries=(*found.tries, Turns(batch=32, turn=1, figures=(), failed=("ours", "eager"))))
    assert columns(time_table(found))["batch"] == ["8", "8", "16", "16", "32", "32"]
    assert columns(time_table(found))["images/s"][4:] == ["out of memory"] * 2
    assert found.best.batch == 16
    assert ratio_lines(found)[-1].startswith("ours / eager, each at its best batch: 2.00 times")


def test_terminal_of_80_columns_cuts_no_figure():
    names = ("ours", "transformers", "transformers-compiled", "eager")
    found = outcome(*(taken(name, 0.1234, batch=batch) for name in names for batch in (8, 1024)), profiles=(PROFILE,))
    tries = tuple(
        replace(one, figures=tuple(replace(of, side=replace(of.side, parameters=1_987_654_321)) for of in one.figures))
        for one in found.tries
    )
    console = Console(width=80, file=io.StringIO())
    show(replace(found, tries=tries), console)
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("1,987,654,321" in line for line in lines) == 2 * len(names)


def test_picture_of_four_sides_cuts_no_name():
    sides = [Bars(f"transformers-compiled {number}", {"attention": 1234.0, "other": 1234.0}) for number in range(4)]
    with Image.open(io.BytesIO(profile_picture("title", "line", sides))) as picture:
        margin = picture.convert("L").crop((picture.width - 8, 0, picture.width, picture.height))
    assert margin.getextrema() == (255, 255)


def test_operator_table_is_short():
    rows = operator_table(PROFILE).rows
    assert len(rows) == 15
    assert max(len(row[0]) for row in rows) <= 48


def test_write_adds_to_the_file_of_the_day_and_loses_nothing(tmp_path):
    words = ["--config", "configs/mae/small.yaml", "DATA.path", "a b"]
    found = outcome(taken("ours", 0.1), taken("eager", 0.2), profiles=(PROFILE,))
    file, picture = write(found, tmp_path / "new", words)
    assert file.name == "mae_small_some-2-threads_2026-01-02.md"
    text = file.read_text()
    assert text.startswith("# mae_small on Some(R) CPU @ 2 GHz, threads: 2, 2026-01-02\n\n## 03:04: batch 8, bf16\n")
    assert "python tools/benchmark.py --config configs/mae/small.yaml DATA.path 'a b'" in text
    assert "torch 2.11" in text
    assert f"]({picture.name})" in text
    assert "| ours | 80 | 100 |" in text
    later = replace(found, date=datetime(2026, 1, 2, 5, 6, 7))
    assert write(later, tmp_path / "new", words)[1] != picture
    assert file.read_text() == f"{text}\n{section(later, words, picture.name.replace('030405', '050607'))}"


def test_figures_hold_everything():
    found = figures(outcome(taken("ours", 0.1), taken("eager", 0.2)), ["--config", "x.yaml"])
    held = found["tries"][0]["sides"]
    assert held["ours"]["images_per_s"] / held["eager"]["images_per_s"] == found["tries"][0]["ratios"][0]["ratio"]
    assert held["ours"]["mfu"] == pytest.approx(0.08)
    assert found["command"] == "python tools/benchmark.py --config x.yaml"


def test_profile_picture_shows_every_kind_of_every_side():
    shares = dict.fromkeys(KINDS, 10.0)
    one, two = (
        Image.open(io.BytesIO(profile_picture("a title", "a line", [Bars("ours", shares)] * count))) for count in (1, 2)
    )
    assert one.width == two.width == 1350
    assert two.height > one.height + 8 * 20
    assert len(set(two.convert("RGB").resize((135, 90)).get_flattened_data())) > 10


def test_machine_has_a_name_for_files():
    machine = Machine.here(CPU)
    assert machine.slug.endswith(f"-{torch.get_num_threads()}-threads")
    assert set(machine.slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert machine.versions["torch"] == torch.__version__.partition("+")[0] or "torch" in machine.versions
    gpu = Machine(device="NVIDIA H200", threads=None, memory=1, versions={}, system="")
    assert (gpu.slug, str(gpu)) == ("nvidia-h200", "NVIDIA H200")


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"against": ("timm",)}, "--against is timm"),
        ({"against": ("eager", "eager")}, "--against names one twice"),
        ({"batches": (8, 0)}, "--batch-sizes is 8 0"),
        ({"rounds": 0}, "--rounds is 0"),
    ],
)
def test_asked_refuses_what_cannot_be(asked, message):
    with pytest.raises(ValueError, match=message):
        Asked(**asked)


def test_eager_is_refused_where_ours_is_eager():
    from mim.lab.benchmark.contenders import eager

    held = dry_task(load_config(RECIPE))
    with pytest.raises(ValueError, match="--against eager: TRAIN"):
        eager(held, held.plan(1), ALONE, real=False)
