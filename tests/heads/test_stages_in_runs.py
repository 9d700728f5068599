"""Heads that read several stages of an encoder, in a run: replicas, plans, checkpoints, reconstructions."""

import pytest
import torch
import torch.distributed as dist
from processes import RECIPE, TINY, call, last_state
from small_data import write_digits
from small_models import CPU, assemble, images, sampled

import mim
from mim.engine.distributed.strategy import DataParallel, FullyShardedDataParallel, make_strategy
from mim.engine.distributed.world import World
from mim.engine.settings import DistributedSettings
from mim.lab.plan import plan_run
from mim.lab.reconstruct import reconstruction_sheet

SWIN = "{name: swin, hidden: replace, patch: 2, width: 8, depths: [1, 1], heads: [2, 2], window: 4}"
UNET = "{name: unet, width: 16, depth: 2, densify_norm: batch}"
FUSION = "{name: transformer, width: 16, depth: 1, heads: 2, stages: [0, -1]}"
PARTS = {"swin and unet": {"ENCODER": SWIN, "HEAD": UNET}, "vit and fusion": {"HEAD": FUSION}}


@pytest.fixture
def alone():
    """A process group of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("encoder", "hidden", "head", "keys"),
    [
        ("vit", "drop", "unet", {}),
        ("swin", "replace", "unet", {"densify_norm": "batch"}),
        ("vit", "drop", "cross_attention", {"stages": (0,)}),
        ("swin", "replace", "pixel_shuffle", {"stages": (0,)}),
    ],
)
def test_replicas_take_steps_without_unused_weights(alone, encoder, hidden, head, keys):
    """PyTorch refuses the second step where a weight of the first had no gradient."""
    model, img = assemble("random", encoder, hidden, head, head_keys=keys).train(), images(2)
    wrapped = DataParallel().wrap(model, [], compiled=False)
    for seed in range(2):
        wrapped(img, sampled(model, img, seed)).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)


def test_replicas_send_gradients_in_buckets_of_the_size_of_the_settings(alone):
    model = assemble("random", "vit", "drop", "transformer").train()
    strategy = make_strategy(DistributedSettings(bucket_mb=3.5), World(0, 1, CPU, heartbeat=object()))
    assert strategy.wrap(model, [], compiled=False).bucket_bytes_cap == 3.5 * 2**20


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shards_with_batch_normalisation_compute_what_one_device_does(alone, dtype):
    plain, model = (assemble("random", "swin", "replace", "unet").train() for _ in range(2))
    strategy, img = FullyShardedDataParallel(World(0, 1, CPU)), images(2)
    strategy.shard(model, model.blocks(), dtype)
    mask = sampled(plain, img)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        losses = [each(img, mask).loss for each in (plain, strategy.wrap(model, model.blocks(), compiled=False))]
    for loss in losses:
        loss.backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5 if dtype == torch.float32 else 1e-3)
    with strategy.gather(model) as gathered:
        for expected, buffer in zip(plain.buffers(), gathered.buffers(), strict=True):
            torch.testing.assert_close(buffer, expected, rtol=1e-2, atol=1e-2)
        assert gathered.head.layers[0].norm1.num_batches_tracked == 1


@pytest.mark.slow
@pytest.mark.parametrize("name", PARTS)
def test_run_is_planned_trained_loaded_and_drawn(tmp_path, name):
    text = RECIPE.read_text()
    encoder, head = text.index("ENCODER:"), text.index("HEAD:")
    after = text.index("\n", head)
    parts = {"ENCODER": text[encoder + len("ENCODER:") : head], **PARTS[name]}
    lines = [f"{section}: {value.strip() if section == 'HEAD' else value}" for section, value in parts.items()]
    (tmp_path / "recipe.yaml").write_text(text[:encoder] + "\n".join(lines) + text[after:])
    keys = {key: value for key, value in TINY.items() if key.split(".")[0] not in PARTS[name]}
    code, output = call(tmp_path / "run", keys, tmp_path / "recipe.yaml")
    assert code == 0, output
    words = [str(word) for pair in keys.items() for word in pair]
    plan = plan_run(mim.load_config(tmp_path / "recipe.yaml", words))
    assert plan.lines["operations"] in output
    assert plan.lines["shapes"] in output
    model, _ = mim.load_model(tmp_path / "run")
    stored = last_state(tmp_path / "run")["model"]
    assert all(torch.equal(weight, stored[key]) for key, weight in model.state_dict().items())
    if "unet" in name:
        assert model.head.layers[0].norm1.num_batches_tracked == 14  # steps
    sheet = reconstruction_sheet(tmp_path / "run", write_digits(tmp_path / "in", 2))
    assert sheet.runs["run"].prediction_BCHW.isfinite().all()
    assert type(mim.load_encoder(tmp_path / "run")) is type(model.encoder)
