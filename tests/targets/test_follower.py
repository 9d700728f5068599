"""Follower: the moving average of the encoder, beside one that is written out by hand in float64."""

import copy

import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import RECIPE, TINY
from small_models import assemble, images, sampled, shaken
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from mim import build, init_weights
from mim.build import load_config
from mim.engine import checkpoint
from mim.engine.distributed.strategy import FullyShardedDataParallel
from mim.engine.distributed.world import World
from mim.engine.optim import parameter_groups
from mim.engine.run_folder import RunFolder
from mim.engine.train_state import TrainState
from mim.engine.trainer import Trainer
from mim.ops.seeding import derive_seed, generator_for
from mim.targets.follower import Follower

ALONE = World(0, 1, torch.device("cpu"))
EPS = 1e-5
TARGET = {
    **{"TARGET.name": "follower", "TARGET.layers": 2, "TARGET.layer_norm": "instance", "TARGET.norm": "layer"},
    **{"TARGET.decay": 0.6, "TARGET.decay_end": 0.95, "TARGET.ramp": 0.5},
}


def config(**keys):
    words = TINY | {"DATA.workers": 0, "EVALUATE.knn": 0, "EVALUATE.samples": 8, "EVALUATE.every_epochs": 0} | TARGET
    words = {key: value for key, value in words.items() if key != "TARGET.normalize"} | keys
    return load_config(RECIPE, [str(word) for pair in words.items() for word in pair])


def task_of(cfg):
    training, held_out = build.build_data(cfg)
    return build.build_task(build.with_statistics(cfg, training), training, held_out)


class Double(torch.nn.Module):
    """The preprocessing, in float64."""

    def __init__(self, preprocess):
        super().__init__()
        self.preprocess = preprocess

    def forward(self, *args):
        return self.preprocess(*args).double()

    def crop(self, images_NCHW, crops_B5):
        return self.preprocess.crop(images_NCHW, crops_B5)

    def normalise(self, images_BCHW):
        return self.preprocess.normalise(images_BCHW).double()


def normed(map_BDhw, axes):
    mean = map_BDhw.mean(dim=axes, keepdim=True)
    variance = ((map_BDhw - mean) ** 2).mean(dim=axes, keepdim=True)
    return (map_BDhw - mean) / (variance + EPS).sqrt()


def hand_target(average, img, layers):
    """Of the last layers: instance norm of each over positions, the mean, then layer norm."""
    outputs = []
    handles = [
        block.register_forward_hook(lambda module, args, output: outputs.append(output))
        for block in average.backbone.blocks[-layers:]
    ]
    with torch.no_grad():
        average(img)
    for handle in handles:
        handle.remove()
    high, wide = average.spec.grid
    maps = [output[:, 1:].transpose(1, 2).reshape(len(img), -1, high, wide) for output in outputs]
    assert len(maps) == layers
    return normed(sum(normed(each, (2, 3)) for each in maps) / layers, (1,))


def test_ten_steps_equal_those_of_a_follower_by_hand(tmp_path):
    """With accumulation, drop path of the student, and a ramp of the decay: losses and weights to 1e-9."""
    keys = {"TRAIN.batch": 24, "DATA.batch_size": 12, "ENCODER.drop_path": 0.3, "LOSS.name": "smooth_l1"}
    cfg = config(**keys)
    task = task_of(cfg)
    task.model.double()
    task.preprocess = Double(task.preprocess)
    student = copy.deepcopy(task.model)
    init_weights.initialise(cfg, task)
    seen, loss_of = [], task.loss

    def keep(model, batch, context):
        seen.append(task.preprocess(batch.images_BCHW, batch.crops_B5))
        return loss_of(model, batch, context)

    task.loss = keep
    trainer = Trainer(task, build.engine_settings(cfg), ALONE, RunFolder(tmp_path))
    steps, losses = 10, []
    trainer.plan = trainer.plan.__class__(24, 12, 1, 2, 1, steps)  # an epoch of ten steps
    trainer.schedule = trainer.plan.schedule(trainer.settings)
    (tmp_path / "checkpoints").mkdir(exist_ok=True)
    add = trainer.meter.add
    trainer.meter.add = lambda values, keys: (losses.append(values[0].item()), add(values, keys))
    trainer.run()

    encoder, head, masker = student.encoder.train(), student.head.train(), student.masker
    average = copy.deepcopy(encoder).eval()
    optimizer = torch.optim.AdamW(parameter_groups(student, trainer.settings.optimizer, {}), lr=0, betas=(0.9, 0.95))
    assert len(losses) == steps
    assert len(seen) == 2 * steps
    for step in range(steps):
        torch.manual_seed(derive_seed(cfg.SEED, "step", step, 0))
        total = 0.0
        for micro in range(2):
            img = seen[2 * step + micro]
            generator = generator_for(torch.device("cpu"), cfg.SEED, "mask", step)
            mask = masker.sample(24, generator, torch.device("cpu")).rows(12 * micro, 12 * micro + 12)
            target = hand_target(average, img, 2)
            predicted = head(encoder(img, mask)).map_BCHW
            error = (predicted - target).abs()
            error = torch.where(error < 1, 0.5 * error**2, error - 0.5).mean(dim=1)
            loss = error[mask.hidden_BHW].mean() / 2
            loss.backward()
            total += loss.item()
        for group in optimizer.param_groups:
            group["lr"] = trainer.schedule.at(step, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert losses[step] == pytest.approx(total, rel=1e-9)
        way = min(1, (step + 1) / steps / 0.5)
        decay = 0.6 + 0.35 * way
        with torch.no_grad():
            for ours, theirs in zip(average.parameters(), encoder.parameters(), strict=True):
                ours.copy_(decay * ours + (1 - decay) * theirs)
    trained = task.model
    for name, weight in encoder.named_parameters():
        torch.testing.assert_close(trained.encoder.get_parameter(name), weight, rtol=1e-9, atol=1e-9, msg=name)
    for name, weight in average.named_parameters():
        torch.testing.assert_close(trained.target.network.get_parameter(name), weight, rtol=1e-9, atol=1e-9, msg=name)
    moved = (average.backbone.blocks[0].mlp.fc1.weight - encoder.backbone.blocks[0].mlp.fc1.weight).abs().max()
    assert moved > 1e-4


def test_decay_goes_from_one_value_to_the_other_along_the_ramp():
    encoder = assemble("random", "vit", "drop", "transformer").encoder
    for ramp, progress, expected in ((0.5, 0.1, 0.42), (0.5, 0.5, 0.9), (0.5, 0.9, 0.9), (0, 0.01, 0.9), (1, 0.5, 0.6)):
        follower = Follower(encoder, decay=0.3, decay_end=0.9, ramp=ramp)
        other = copy.deepcopy(encoder)
        with torch.no_grad():
            for ours, theirs in zip(follower.network.parameters(), other.parameters(), strict=True):
                ours.zero_()
                theirs.fill_(1.0)
        follower.after_step(other, progress)
        for weight in follower.network.parameters():
            torch.testing.assert_close(weight, torch.full_like(weight, 1 - expected), rtol=0, atol=1e-6)


@pytest.mark.parametrize("keys", [{"decay": 1.01}, {"decay_end": -0.1}, {"ramp": 2}])
def test_values_outside_of_0_and_1_are_refused(keys):
    encoder = assemble("random", "vit", "drop", "transformer").encoder
    with pytest.raises(ValueError, match=f"TARGET.{next(iter(keys))} is .* between 0 and 1"):
        Follower(encoder, **keys)


def test_follower_acts_as_in_evaluation_while_the_student_trains():
    model = assemble("random", "vit", "drop", "transformer", "follower", encoder_keys={"drop_path": 0.9}).train()
    img = images(4)
    first, second = model.target(img), model.target(img)
    assert torch.equal(first, second)
    assert torch.equal(first, model.eval().target(img))
    fresh = assemble("random", "vit", "drop", "transformer", "follower", encoder_keys={"drop_path": 0.9})
    assert torch.equal(first, fresh.target(img))
    model.train()
    assert not any(module.training for module in model.target.network.modules())
    assert model.target.training
    assert model.encoder.training


def test_follower_has_no_gradient_and_is_no_parameter_that_is_trained():
    model, img = assemble("random", "vit", "drop", "transformer", "follower").train(), images(2)
    model(img, sampled(model, img)).loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in model.target.parameters())
    assert not any("target" in name for name, p in model.named_parameters() if p.requires_grad)
    groups = parameter_groups(model, build.engine_settings(config()).optimizer, {})
    trained = {id(p) for group in groups for p in group["params"]}
    assert not trained & {id(p) for p in model.target.parameters()}


def weights_of(model, path, text):
    checkpoint.write(path, {"step": 1, "model": model.state_dict(), "ema": {}, "config": text})
    return path


def test_follower_starts_with_the_weights_that_the_student_starts_with(tmp_path):
    """From the file of a run of pixels."""
    words = {"TARGET.name": "pixels", "TARGET.normalize": "none"}
    pixels = load_config(RECIPE, [str(word) for pair in (TINY | words).items() for word in pair])
    other = build.build_model(pixels)
    shaken(other.encoder)
    file = weights_of(other, tmp_path / "other.pt", pixels.to_yaml())
    cfg = config(**{"INIT.checkpoint": str(file)})
    task = task_of(cfg)
    init_weights.initialise(cfg, task)
    for name, weight in other.encoder.state_dict().items():
        assert torch.equal(task.model.encoder.state_dict()[name], weight), name
        assert torch.equal(task.model.target.network.state_dict()[name], weight), name


def test_follower_of_a_run_goes_on_where_it_was_with_init_parts_model(tmp_path):
    cfg = config()
    other = build.build_model(cfg)
    shaken(other.encoder)
    shaken(other.target.network, seed=2)
    file = weights_of(other, tmp_path / "other.pt", cfg.to_yaml())
    task = task_of(config(**{"INIT.checkpoint": str(file), "INIT.parts": "model"}))
    init_weights.initialise(config(**{"INIT.checkpoint": str(file), "INIT.parts": "model"}), task)
    for name, weight in other.target.network.state_dict().items():
        assert torch.equal(task.model.target.network.state_dict()[name], weight), name


def test_running_statistics_of_the_student_are_those_of_the_follower():
    keys = {"encoder_keys": {"model": "resnet10t", "options": ()}, "masker_keys": {"cell": 32}}
    model = assemble("random", "timm", "sparse", "transformer", "follower", **keys).train()
    img = images(3)
    model(img, sampled(model, img))
    before = copy.deepcopy(model.target.network.state_dict())
    model.target.after_step(model.encoder, 0.5)
    changed = 0
    for (name, ours), theirs in zip(model.target.network.named_buffers(), model.encoder.buffers(), strict=True):
        assert torch.equal(ours, theirs), name
        changed += not torch.equal(ours, before[name]) if name in before else 0
    assert changed > 10
    assert not any(module.training for module in model.target.network.modules())


def test_step_that_is_not_finite_leaves_the_follower_finite():
    """The student does not move in that step; the follower comes nearer to it, as a moving average does."""
    task = task_of(config())
    state = TrainState(task, build.engine_settings(config()), ALONE)
    model = state.wrap()
    shaken(task.model.encoder)
    img, before = images(2, task.model.encoder.image), copy.deepcopy(task.model.encoder.state_dict())
    output = model(img, task.model.sample_mask(img))
    (output.loss * torch.inf).backward()
    state.update(output.loss.detach() * torch.inf, lambda scale: 1e-2, 0.0)
    task.after_step(0.1)
    assert all(torch.equal(value, before[name]) for name, value in task.model.encoder.state_dict().items())
    assert all(value.isfinite().all() for value in task.model.target.state_dict().values())


def test_activation_checkpointing_changes_neither_loss_nor_target():
    results = []
    for on in (False, True):
        cfg = config(**{"TRAIN.activation_checkpointing": on})
        task = task_of(cfg)
        state = TrainState(task, build.engine_settings(cfg), ALONE)
        model, img = state.wrap(), images(2, task.model.encoder.image)
        torch.manual_seed(0)
        output = model(img, task.model.sample_mask(img, torch.Generator().manual_seed(0)))
        output.loss.backward()
        gradient = task.model.encoder.backbone.blocks[0].mlp.fc1.weight.grad
        results.append((output.loss.detach(), gradient, task.model.target(img)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_moving_average_of_the_weights_has_the_moving_average_of_the_follower():
    """Evaluations use TRAIN.ema, which must not disturb the target of training."""
    task = task_of(config(**{"TRAIN.ema": 0.5}))
    state = TrainState(task, build.engine_settings(config(**{"TRAIN.ema": 0.5})), ALONE)
    shaken(task.model.encoder)
    target = copy.deepcopy(task.model.target.network.state_dict())
    for _ in range(2):  # the first copies
        state.average.update_parameters(task.model)
    with state.eval_mode() as evaluated:
        assert evaluated.target is not task.model.target
        for name, weight in evaluated.target.network.state_dict().items():
            torch.testing.assert_close(weight, target[name])
        assert not torch.equal(evaluated.encoder.backbone.cls_token, task.model.target.network.backbone.cls_token)
    assert not task.model.target.network.training
    for name, weight in task.model.target.network.state_dict().items():
        assert torch.equal(weight, target[name])


def test_target_std_is_that_of_the_targets_over_images():
    follower = assemble("random", "vit", "drop", "transformer", "follower").target
    map_BDhw = torch.randn(6, 16, 4, 8, generator=torch.Generator().manual_seed(0)) * 3
    expected = np.sqrt(np.var(map_BDhw.double().numpy(), axis=0, ddof=1).mean())
    assert follower.metrics(map_BDhw)["target_std"].item() == pytest.approx(expected, rel=1e-6)
    assert follower.metrics(map_BDhw[:1].expand(5, -1, -1, -1))["target_std"] == 0
    assert follower.metrics(map_BDhw[:1])["target_std"] == 0


@pytest.mark.parametrize("name", ["layer_norm", "norm"])
@pytest.mark.parametrize("kind", ["none", "layer", "instance"])
def test_norms_equal_plain_loops(name, kind):
    keys = {"layers": 2, "layer_norm": "none", "norm": "none"} | {name: kind}
    model = assemble("random", "vit", "drop", "transformer", "follower", target_keys=keys)
    shaken(model.encoder)
    model.target.start(model.encoder)
    img = images(2)
    outputs = []
    handles = [
        block.register_forward_hook(
            lambda module, args, output: outputs.append(output[:, 1:].detach().double().numpy())
        )
        for block in model.encoder.backbone.blocks
    ]
    actual = model.eval().target(img).double().numpy()
    assert not outputs  # the follower has blocks of its own
    with torch.no_grad():
        model.encoder(img)
    for handle in handles:
        handle.remove()

    def normalised(tokens):
        result = tokens.copy()
        if kind == "layer":
            for b, n in np.ndindex(*tokens.shape[:2]):
                result[b, n] = (tokens[b, n] - tokens[b, n].mean()) / np.sqrt(tokens[b, n].var() + EPS)
        if kind == "instance":
            for b, d in np.ndindex(tokens.shape[0], tokens.shape[2]):
                result[b, :, d] = (tokens[b, :, d] - tokens[b, :, d].mean()) / np.sqrt(tokens[b, :, d].var() + EPS)
        return result

    if name == "layer_norm":
        outputs = [normalised(each) for each in outputs]
    mean = np.mean(outputs, axis=0)
    mean = normalised(mean) if name == "norm" else mean
    expected = mean.transpose(0, 2, 1).reshape(actual.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_more_layers_than_the_encoder_has_alike_are_refused():
    with pytest.raises(ValueError, match=r"TARGET.layers is 3: of .* at most 2 layers"):
        assemble("random", "vit", "drop", "transformer", "follower", target_keys={"layers": 3})
    with pytest.raises(ValueError, match=r"TARGET.layers is 2: of .* at most 1 layers"):
        assemble("random", "swin", "replace", "pixel_shuffle", "follower", target_keys={"layers": 2})


@pytest.fixture
def alone():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_blocks_of_the_follower_are_shards_of_their_own(alone):
    """So that a device never holds the whole of it; its loss and its average are as without shards."""
    plain, task = (task_of(config()) for _ in range(2))
    FullyShardedDataParallel(ALONE).shard(task.model, task.shards(), torch.float32)
    assert all(isinstance(block, FSDPModule) for block in task.model.target.network.blocks())
    img = images(4, task.model.encoder.image)
    mask = plain.model.sample_mask(img, torch.Generator().manual_seed(0))
    outputs = []
    for each in (plain, task):
        output = each.model.train()(img, mask)
        output.loss.backward()
        outputs.append(output.loss.item())
        with torch.no_grad():
            for parameter in each.model.encoder.parameters():
                parameter.mul_(1.5)
        each.after_step(0.5)
    assert outputs[0] == pytest.approx(outputs[1], rel=1e-6)
    assert all(isinstance(weight, DTensor) for weight in task.model.target.network.parameters())
    for theirs, ours in zip(
        plain.model.target.network.parameters(), task.model.target.network.parameters(), strict=True
    ):
        torch.testing.assert_close(ours.full_tensor(), theirs)
