"""Training steps on a GPU: finite, without a host sync, equal to those of the CPU, compiled or not."""

import warnings
from copy import deepcopy

import pytest
import torch
from gpu_recipes import ACCUMULATED, CLIPPED_FP16, RECIPES, RECOMPUTED, config, trainer
from torch._dynamo.utils import counters

from mim import build
from mim.engine.modes import deterministic_kernels
from mim.ops.attention import choose_attention

CPU = torch.device("cpu")
VARIANTS = {
    "bf16": {},
    "fp32": {"TRAIN.precision": "fp32"},
    "fp16, clipped": CLIPPED_FP16,
    "accumulated": ACCUMULATED,
    "recomputed": RECOMPUTED,
    "averaged": {"TRAIN.ema": 0.9},
}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_step_on_a_gpu_moves_the_weights_without_a_host_sync(device, no_host_sync, recipe, variant):
    run = trainer(recipe, device, VARIANTS[variant])
    before = [parameter.detach().clone() for parameter in run.train_state.parameters]
    for _ in range(3):
        run.take_step()
    with no_host_sync():
        for _ in range(2):
            run._train_step()
    assert run.norm.isfinite()
    assert all(parameter.isfinite().all() for parameter in run.train_state.parameters)
    moved = [not torch.equal(*pair) for pair in zip(before, run.train_state.parameters, strict=True)]
    assert sum(moved) > 0.9 * len(moved)
    if variant == "fp16, clipped":
        assert run.train_state.scaler.get_scale() > 1


def gradients(model, img_BCHW, mask, compiled=False):
    """The loss, and the gradient of each weight."""
    model.zero_grad(set_to_none=True)
    loss = (torch.compile(model) if compiled else model)(img_BCHW, mask).loss
    loss.backward()
    named = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    return loss.detach(), named


def assert_close(ours, theirs):
    torch.testing.assert_close(ours[0].cpu(), theirs[0].cpu(), rtol=1e-4, atol=1e-6)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(
            ours[1][name].cpu(),
            gradient.cpu(),
            rtol=1e-3,
            atol=2e-4 * scale + 1e-8,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def model_and_images(recipe):
    """The model on the CPU, with drop path off, images and their mask."""
    torch.manual_seed(0)
    model = build.build_model(config(recipe, {"ENCODER.drop_path": 0.0})).train()
    img_BCHW = torch.randn(4, 3, 64, 64)
    return model, img_BCHW, model.masker.sample(4, torch.Generator().manual_seed(0), CPU)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("recipe", RECIPES)
def test_gpu_computes_what_the_cpu_does(device, recipe):
    model, img_BCHW, mask = model_and_images(recipe)
    reference = gradients(model, img_BCHW, mask)
    copy = deepcopy(model).to(device)
    choose_attention(copy, device)  # as a run on this device does
    assert_close(gradients(copy, img_BCHW.to(device), mask.to(device)), reference)


@pytest.mark.usefixtures("exact")
@pytest.mark.parametrize("recipe", ["mae", "simmim_vit"])  # Swin takes minutes to compile
def test_compiled_model_computes_what_the_eager_one_does(device, recipe):
    model, img_BCHW, mask = model_and_images(recipe)
    model, img_BCHW, mask = model.to(device), img_BCHW.to(device), mask.to(device)
    choose_attention(model, device)
    reference = gradients(model, img_BCHW, mask)
    torch.compiler.reset()
    assert_close(gradients(model, img_BCHW, mask, compiled=True), reference)


@pytest.mark.parametrize("variant", ["bf16", "accumulated"])
@pytest.mark.parametrize("compiled", [True, "max"])
def test_compiled_step_makes_no_host_sync_and_never_compiles_again(device, no_host_sync, variant, compiled):
    torch.compiler.reset()
    counters.clear()
    run = trainer("mae", device, VARIANTS[variant] | {"TRAIN.compile": compiled})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(3):
            run.take_step()
    deterministic = deterministic_kernels(run.settings.train.is_deterministic(device))  # a graph is of its mode
    with torch.compiler.set_stance("fail_on_recompile"), deterministic, no_host_sync():
        for _ in range(2):
            run._train_step()
    assert not counters["graph_break"]
    assert run.norm.isfinite()
