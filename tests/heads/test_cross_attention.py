"""The cross_attention head: what it computes, which places it decodes, and what that is worth to the loss."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from small_data import RECIPE
from small_models import IMAGE, assemble, generator, images, members, sampled, small
from torch._dynamo.testing import CompileCounter

from mim import build, load_config
from mim.cost.model_summary import summarise_model
from mim.engine.distributed.world import World
from mim.engine.modes import recompute_activations
from mim.heads import CrossAttention
from mim.maskers import Masker
from mim.ops.attention import choose_attention
from mim.ops.patches import patchify
from mim.ops.seeding import scores
from mim.structures import EncoderSpec, Features, ImageSpec, PatchMask, TargetSpec

SPEC = EncoderSpec(width=12, stride=8, patch=8, grid=(3, 4), drops_hidden=True, num_prefix=1)
TARGET = TargetSpec(channels=3, stride=2)
CPU = torch.device("cpu")


def build_head(spec=SPEC, target=TARGET, seed=1, **keys) -> CrossAttention:
    torch.manual_seed(seed)
    return small(CrossAttention, spec, target, **{"share": 1.0, **keys}).double()


def features(num_visible: int = 5, batch: int = 2, seed: int = 0, spec=SPEC) -> Features:
    """Dropped features of as many kept tokens, with the draw of a mask."""
    chance = generator(seed)
    count = math.prod(spec.grid)
    kept_BN = torch.rand(batch, count, generator=chance).argsort(dim=1)[:, :num_visible].sort(dim=1).values
    tokens_BND = torch.randn(batch, num_visible, spec.width, generator=chance, dtype=torch.float64)
    prefix_BKD = torch.randn(batch, spec.num_prefix, spec.width, generator=chance, dtype=torch.float64)
    draw_B = torch.randint(2**31, (batch,), generator=chance)
    return Features(tokens_BND, spec.grid, kept_BN, prefix_BKD if spec.num_prefix else None, draw_B)


def model(share=1.0, masker="random", **keys):
    return assemble(masker, "vit", "drop", CrossAttention, head_keys={"share": share, **keys})


def decoded(head: CrossAttention, inputs: Features) -> torch.Tensor:
    """Which places the head decoded, (B, N) bool: those where its map is not zero."""
    patches_BNP = patchify(head(inputs).map_BCHW, head.entries_per_side)
    return patches_BNP.abs().amax(dim=2) > 0


def hidden_of(inputs: Features) -> torch.Tensor:
    return torch.ones(len(inputs.kept_BN), math.prod(inputs.grid), dtype=torch.bool).scatter(1, inputs.kept_BN, False)


# ---------------------------------------------------------------- what it computes


def decode_position(head, read_KD, position: int) -> torch.Tensor:
    """CrossMAE's decoder by its formulas, for one place of one image and one attention head after the other."""

    def norm(x_D, layer):
        return (x_D - x_D.mean()) / (x_D.var(correction=0) + 1e-6).sqrt() * layer.weight + layer.bias

    query_D = head.mask_token[0, 0] + head.positions[0, position]
    for block in head.layers:
        attention = block.attn
        q_D = attention.q.weight @ norm(query_D, block.norm1) + attention.q.bias
        kv_KD = read_KD @ attention.kv.weight.T + attention.kv.bias
        width, size = len(q_D), len(q_D) // attention.heads
        mixed = []
        for start in range(0, width, size):
            part = slice(start, start + size)
            weight_K = torch.exp(kv_KD[:, :width][:, part] @ q_D[part] / math.sqrt(size))
            mixed.append((weight_K / weight_K.sum()) @ kv_KD[:, width:][:, part])
        query_D = query_D + attention.proj.weight @ torch.cat(mixed) + attention.proj.bias
        hidden_D = F.gelu(block.mlp.fc1.weight @ norm(query_D, block.norm2) + block.mlp.fc1.bias)
        query_D = query_D + block.mlp.fc2.weight @ hidden_D + block.mlp.fc2.bias
    return head.predict.weight @ norm(query_D, head.norm) + head.predict.bias


@pytest.mark.parametrize("prefix", [0, 1, 3])
@pytest.mark.parametrize("fused", [True, False])
@torch.no_grad()
def test_cross_attention_equals_its_formulas(fused, prefix):
    spec = replace(SPEC, num_prefix=prefix)
    head, inputs = build_head(spec, depth=2, heads=4, mlp_ratio=1.5), features(spec=spec)
    for parameter in head.parameters():
        parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(2), dtype=torch.float64))
    choose_attention(head, torch.device("cuda" if fused else "cpu"))
    assert {block.attn.fused_attn for block in head.layers} == {fused}
    patches_BNP = patchify(head(inputs).map_BCHW, head.entries_per_side)
    for sample, hidden_N in enumerate(hidden_of(inputs).tolist()):
        parts = [inputs.prefix_BKD, inputs.tokens_BND] if prefix else [inputs.tokens_BND]
        read = torch.cat([part_BND[sample] for part_BND in parts])
        for position, hidden in enumerate(hidden_N):
            expected = decode_position(head, read, position) if hidden else torch.zeros(48, dtype=torch.float64)
            torch.testing.assert_close(patches_BNP[sample, position], expected, rtol=0, atol=1e-10)


def test_cross_attention_starts_as_mae_does():
    head = build_head(width=64, depth=2)
    for linear in (module for module in head.modules() if isinstance(module, torch.nn.Linear)):
        bound = math.sqrt(6 / (linear.in_features + linear.out_features))
        assert 0.95 * bound < linear.weight.abs().max() <= bound
        assert not linear.bias.any()
    assert [module.eps for module in head.modules() if isinstance(module, torch.nn.LayerNorm)] == [1e-6] * 5
    assert build_head(width=512).mask_token.std().item() == pytest.approx(0.02, rel=0.15)
    assert "positions" not in head.state_dict()


@torch.no_grad()
def test_cross_attention_predicts_every_place_of_an_image_of_which_nothing_was_hidden():
    inputs = replace(features(), tokens_BND=torch.randn(2, 12, 12, dtype=torch.float64), kept_BN=None, draw_B=None)
    prediction = build_head(share=0.25).train()(inputs)
    assert prediction.predicted_BHW is None
    assert patchify(prediction.map_BCHW, 4).abs().amax(dim=2).all()


def test_cross_attention_recomputes_its_blocks_to_the_same_gradients():
    plain, recomputing = model(depth=2), model(depth=2)
    recompute_activations(recomputing.head.blocks())
    assert len(plain.head.blocks()) == 2
    img, mask = images(2), sampled(plain, images(2))
    for each in (plain, recomputing):
        each(img, mask).loss.backward()
    for first, second in zip(plain.parameters(), recomputing.parameters(), strict=True):
        assert first.grad is None or torch.equal(first.grad, second.grad)


# ---------------------------------------------------------------- which places it decodes


@pytest.mark.parametrize(
    ("share", "num_visible", "count"), [(0.25, 4, 2), (0.5, 4, 4), (0.5, 11, 1), (0.01, 2, 1), (0.9, 2, 9), (1.0, 5, 7)]
)
@torch.no_grad()
def test_cross_attention_decodes_its_share_of_the_hidden_places_while_training(share, num_visible, count):
    head, inputs = build_head(share=share).train(), features(num_visible, batch=40)
    decoded_BN, hidden_BN = decoded(head, inputs), hidden_of(inputs)
    assert not (decoded_BN & ~hidden_BN).any()
    assert set(decoded_BN.sum(dim=1).tolist()) == {count}
    predicted_BHW = head(inputs).predicted_BHW
    if count == 12 - num_visible:
        assert predicted_BHW is None
        return
    assert torch.equal(predicted_BHW.flatten(1), decoded_BN)
    full_head = build_head(share=1.0).train()  # a place is decoded alike whatever others are
    expected = patchify(full_head(inputs).map_BCHW, 4)[decoded_BN]
    torch.testing.assert_close(patchify(head(inputs).map_BCHW, 4)[decoded_BN], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("way", ["eval", "no draw"])
@torch.no_grad()
def test_cross_attention_decodes_all_hidden_places_in_eval_mode_and_where_nothing_was_drawn(way):
    head, inputs = build_head(share=0.25), features()
    if way == "eval":
        head.eval()
    else:
        inputs = replace(inputs, draw_B=None)
    assert torch.equal(decoded(head, inputs), hidden_of(inputs))
    assert head(inputs).predicted_BHW is None
    assert torch.equal(head(inputs).map_BCHW, build_head(share=1.0).train()(inputs).map_BCHW)


@torch.no_grad()
def test_cross_attention_choice_is_a_function_of_the_mask_row_by_row():
    head, inputs = build_head(share=0.5).train(), features(batch=6)
    assert torch.equal(decoded(head, inputs), decoded(head, replace(inputs, tokens_BND=inputs.tokens_BND + 1)))
    rows = Features(
        inputs.tokens_BND[2:4], inputs.grid, inputs.kept_BN[2:4], inputs.prefix_BKD[2:4], inputs.draw_B[2:4]
    )
    assert torch.equal(decoded(head, rows), decoded(head, inputs)[2:4])
    assert not torch.equal(decoded(head, replace(inputs, draw_B=inputs.draw_B + 1)), decoded(head, inputs))


@torch.no_grad()
def test_mask_rows_keep_their_draws_so_that_ranks_and_micro_batches_choose_as_one():
    mae, img = model(0.5).train(), images(6)
    mask = sampled(mae, img)
    assert torch.equal(mask.rows(2, 5).draw_B, mask.draw_B[2:5])
    expected = mae(img, mask).prediction
    torch.testing.assert_close(mae(img[2:5], mask.rows(2, 5)).prediction, expected[2:5], rtol=0, atol=1e-5)
    assert PatchMask.from_tensor(mask.hidden_BHW, 6).draw_B is None


def decoded_under_masks(name: str, samples: int, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Under so many masks, (S, N) bool: which places were hidden, and which of them a training step decoded."""
    torch.manual_seed(0)
    masker = small(Masker.named(name), ImageSpec(1, 48, 32))  # 6 x 4 cells
    head = CrossAttention(replace(SPEC, grid=(6, 4), num_prefix=0), TARGET, width=4, depth=1, heads=1, share=share)
    mask = masker.sample(samples, generator(7), CPU)
    kept_BN = mask.kept_indices(6, 4)
    inputs = Features(torch.zeros(samples, kept_BN.shape[1], 12), (6, 4), kept_BN, None, mask.draw_B)
    return mask.hidden_BHW.flatten(1), head.train()(inputs).predicted_BHW.flatten(1)


@pytest.mark.parametrize("share", [0.25, pytest.param(0.5, marks=pytest.mark.slow)])
@pytest.mark.parametrize("masker", members(Masker))
@torch.no_grad()
def test_cross_attention_gives_every_hidden_place_and_pair_the_same_chance(masker, share):
    """Also under `grid`, which hides the same places in every image."""
    hidden_SN, decoded_SN = (part.double() for part in decoded_under_masks(masker, 20_000, share))
    count, decoded_count = int(hidden_SN[0].sum()), int(decoded_SN[0].sum())
    assert decoded_count == round(share * count)
    one = decoded_count / count
    two = one * (decoded_count - 1) / (count - 1)
    hidden_N, decoded_N = hidden_SN.sum(dim=0), decoded_SN.sum(dim=0)
    met = hidden_N > 0
    deviation = (decoded_N[met] - one * hidden_N[met]) / (one * (1 - one) * hidden_N[met]).sqrt()
    # a fixed number in each sample takes a degree of freedom, and as much of the variance
    chi2 = (deviation**2).sum().item() * (count - 1) / count
    assert stats.chi2.sf(chi2, int(met.sum()) - 1) > 1e-3
    assert stats.chi2.cdf(chi2, int(met.sum()) - 1) > 1e-3  # and not more even than chance is
    pairs = torch.triu(torch.ones(len(hidden_N), len(hidden_N), dtype=torch.bool), diagonal=1)
    hidden_pairs, decoded_pairs = (hidden_SN.T @ hidden_SN)[pairs], (decoded_SN.T @ decoded_SN)[pairs]
    met = hidden_pairs > 200
    deviation = (decoded_pairs[met] - two * hidden_pairs[met]) / (two * (1 - two) * hidden_pairs[met]).sqrt()
    assert deviation.abs().max() < stats.norm.isf(1e-4 / int(met.sum()))  # of any one pair


def test_scores_are_uniform_unlike_in_each_sample_and_those_of_their_formula():
    draw_B = torch.randint(2**31, (500,), generator=generator(0))
    scores_BN = scores(draw_B, 196)
    assert scores_BN.min() >= 0
    assert scores_BN.max() < 2**32
    assert all(len(row.unique()) == 196 for row in scores_BN)
    uniform = stats.kstest((scores_BN.flatten() / 2**32).numpy(), "uniform")
    assert uniform.pvalue > 1e-3

    def by_hand(draw: int, position: int) -> int:
        mixed = draw ^ position
        for _ in range(2):
            mixed = ((mixed >> 16) ^ mixed) * 0x45D9F3B % 2**32
        return (mixed >> 16) ^ mixed

    assert scores_BN[3].tolist() == [by_hand(int(draw_B[3]), position) for position in range(196)]


# ---------------------------------------------------------------- loss, evaluation, cost


def test_loss_of_a_training_step_is_over_the_decoded_places_and_of_evaluation_over_all():
    full, part, img = model(1.0), model(0.5), images(4)
    mask = sampled(full, img)
    error_BN = patchify((full(img, mask).prediction - full.target(img)) ** 2, 8).mean(dim=2)
    hidden_BN = mask.at(4, 8).flatten(1)
    decoded_BN = part.head(part.encoder(img, mask)).predicted_BHW.flatten(1)
    assert decoded_BN.sum() == 4 * 8
    torch.testing.assert_close(part.train()(img, mask).loss, error_BN[decoded_BN].mean())
    torch.testing.assert_close(part.eval()(img, mask).loss, error_BN[hidden_BN].mean())
    assert torch.equal(part(img, mask).prediction, full(img, mask).prediction)


def test_held_out_loss_and_pictures_do_not_depend_on_the_share(tmp_path):
    reports = []
    for share in (1.0, 0.25):
        text = RECIPE.replace("name: transformer", f"name: cross_attention, share: {share}")
        (tmp_path / "run.yaml").write_text(text.replace("cell: 8", "cell: 4").replace("patch: 8", "patch: 4"))
        cfg = load_config(tmp_path / "run.yaml", ["EVALUATE.samples", "40", "EVALUATE.knn_bank", "40"])
        sources = build.build_data(cfg)
        task = build.build_task(build.with_statistics(cfg, sources[0]), *sources)
        task.model.eval()
        with torch.no_grad():
            reports.append(task.evaluate(task.model, World(0, 1, CPU)))
    assert reports[0].metrics == reports[1].metrics
    assert reports[0].metrics["val/loss"] > 0
    assert torch.equal(reports[0].pictures["reconstructions"], reports[1].pictures["reconstructions"])


def test_loss_over_all_cells_is_refused_where_only_hidden_ones_are_predicted():
    with pytest.raises(ValueError, match=r"LOSS\.over all .*HEAD\.name cross_attention.*use LOSS\.over hidden"):
        assemble("random", "vit", "drop", CrossAttention, loss_keys={"over": "all"})


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_work_of_the_head_is_counted_for_the_places_that_it_decodes(share):
    with torch.device("meta"):
        work = summarise_model(model(share, depth=3, width=24, heads=2), IMAGE).work["head"].forward
    read, positions, wide, source, entries = 16 + 1, round(16 * share), 24, 16, 8 * 8 * 3
    block = (
        wide * wide * 2 * positions
        + 2 * source * wide * read
        + 2 * positions * read * wide
        + 8 * wide * wide * positions
    )
    assert work == 2 * (3 * block + positions * wide * entries)


@pytest.mark.parametrize("training", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_cross_attention_compiles_as_one_graph_that_serves_every_mask(training):
    torch._dynamo.reset()
    plain, counter = model(0.5).train(training), CompileCounter()
    compiled = torch.compile(plain, backend=counter, fullgraph=True)
    for seed in range(3):
        img = images(2, seed=seed)
        mask = sampled(plain, img, seed)
        output = compiled(img, mask)
        torch.testing.assert_close(output.loss, plain(img, mask).loss)
        output.loss.backward()
    assert counter.frame_count == 1
    torch._dynamo.reset()


# ---------------------------------------------------------------- what it refuses


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_cross_attention_refuses_a_share_that_is_none(share):
    with pytest.raises(ValueError, match=rf"HEAD\.share is {share}: it is a share, above 0 and at most 1"):
        build_head(share=share)


def test_cross_attention_refuses_heads_that_do_not_divide_its_width():
    with pytest.raises(ValueError, match=r"HEAD\.heads 5 does not divide HEAD\.width 16"):
        build_head(heads=5)


def test_cross_attention_refuses_an_encoder_that_replaces():
    with pytest.raises(ValueError, match=r"cross_attention predicts hidden tokens only.*ENCODER\.hidden drop"):
        build_head(replace(SPEC, drops_hidden=False))
