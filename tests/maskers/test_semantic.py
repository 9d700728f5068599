"""Semantic: what stays visible follows a teacher's attention, by enumeration of all orders of a few cells."""

from itertools import permutations

import pytest
import torch
from small_models import IMAGE, assemble, images, sampled

from mim.maskers import Masker
from mim.ops.seeding import scores
from mim.structures import ImageSpec, PatchMask

CPU = torch.device("cpu")


def masker_of(grid, visible):
    """With cells of 8 px."""
    cells = grid[0] * grid[1]
    part = Masker.named("semantic")
    image = ImageSpec(3, 8 * grid[0], 8 * grid[1])
    return part(image, cell=8, ratio=1 - (visible + 0.5) / cells)


def shares_of_orders(weights, visible):
    """The chance of each set of visible cells, drawn one by one without replacement."""
    chances: dict[frozenset, float] = {}
    for order in permutations(range(len(weights)), visible):
        chance, left = 1.0, sum(weights)
        for cell in order:
            chance *= weights[cell] / left
            left -= weights[cell]
        chances[frozenset(order)] = chances.get(frozenset(order), 0.0) + chance
    return chances


@pytest.mark.parametrize(("weights", "visible"), [((1, 2, 5), 1), ((1, 2, 5), 2), ((0.5, 0.1, 0.1, 0.3), 2)])
def test_visible_sets_have_the_chances_of_draws_without_replacement(weights, visible):
    """Chi-square over all sets; 16.3 is exceeded once in a thousand for 3 degrees of freedom, 20.5 for 5."""
    masker, count = masker_of((1, len(weights)), visible), 20_000
    mask = masker.sample(count, torch.Generator().manual_seed(0), CPU)
    attention = torch.tensor(weights, dtype=torch.float32).expand(count, 1, -1)
    drawn = ~masker.finish(mask, attention).hidden_BHW[:, 0]
    expected = shares_of_orders(weights, visible)
    assert sum(expected.values()) == pytest.approx(1)
    codes = (drawn.long() * 2 ** torch.arange(len(weights))).sum(dim=1)
    chi_square = 0.0
    for cells, chance in expected.items():
        observed = int((codes == sum(2**cell for cell in cells)).sum())
        chi_square += (observed - count * chance) ** 2 / (count * chance)
    assert chi_square < (20.5 if len(expected) > 3 else 16.3)


def test_count_of_visible_cells_is_exact_whatever_the_attention():
    masker = masker_of((4, 6), 7)
    assert masker.visible == 7
    mask = masker.sample(64, torch.Generator().manual_seed(0), CPU)
    noise = torch.rand(64, 4, 6, generator=torch.Generator().manual_seed(1))
    for attention in (noise, noise**40, torch.ones(64, 4, 6), torch.zeros(64, 4, 6), noise[:, :2, :3]):
        finished = masker.finish(mask, attention)
        assert finished.visible == 7
        assert ((~finished.hidden_BHW).sum(dim=(1, 2)) == 7).all()


def test_cells_without_attention_are_the_last_to_stay_visible():
    masker = masker_of((2, 3), 2)
    mask = masker.sample(50, torch.Generator().manual_seed(0), CPU)
    attention = torch.tensor([[0.0, 0.0, 0.3], [0.0, 0.7, 0.0]]).expand(50, -1, -1)
    assert torch.equal(masker.finish(mask, attention).hidden_BHW, attention == 0)


def test_rows_taken_apart_have_the_masks_of_the_whole_batch():
    masker = masker_of((4, 6), 6)
    mask = masker.sample(8, torch.Generator().manual_seed(0), CPU)
    attention = torch.rand(8, 4, 6, generator=torch.Generator().manual_seed(1))
    whole = masker.finish(mask, attention).hidden_BHW
    parts = [masker.finish(mask.rows(row, row + 2), attention[row : row + 2]).hidden_BHW for row in range(0, 8, 2)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(masker.finish(mask, attention).hidden_BHW, whole)


def test_choice_of_visible_cells_says_nothing_about_the_choices_of_a_head():
    """A head that decodes some hidden cells chooses them by the same draw: each must be as likely as its neighbour."""
    masker, count = masker_of((1, 8), 3), 20_000
    mask = masker.sample(count, torch.Generator().manual_seed(0), CPU)
    attention = torch.tensor([8.0, 4, 2, 1, 1, 0.5, 0.5, 0.25]).expand(count, 1, -1)
    hidden = masker.finish(mask, attention).hidden_BHW[:, 0]
    order = scores(mask.draw_B, 8).masked_fill(~hidden, 2**33)
    first = order.argmin(dim=1)  # what a head would decode first of the hidden cells
    expected = (hidden / hidden.sum(dim=1, keepdim=True)).sum(dim=0)
    observed = torch.bincount(first, minlength=8)
    assert (((observed - expected) ** 2 / expected).sum() < 24.3).item()  # exceeded once in a thousand


# ---------------------------------------------------------------- in a model


def model_of(head="transformer", hidden="drop", **keys):
    return assemble("semantic", "vit", hidden, head, "teacher", **keys)


def test_semantic_without_a_teacher_is_refused():
    for target in ("pixels", "follower"):
        with pytest.raises(ValueError, match=r"MASKER\.name semantic .* use TARGET\.name teacher"):
            assemble("semantic", "vit", "drop", "transformer", target)


@torch.no_grad()
def test_teacher_runs_once_for_its_features_and_its_attention():
    model, img, calls = model_of().eval(), images(3), []
    network = model.target.frozen.network
    network.register_forward_hook(lambda *_: calls.append(1))
    model(img, sampled(model, img))
    assert len(calls) == 1


@torch.no_grad()
def test_model_sees_the_mask_that_it_returns():
    """Loss, prediction and picture are of one mask: that of the teacher's attention, with which a plain one agrees."""
    model, img = model_of().eval(), images(3)
    drawn = sampled(model, img)
    output = model(img, drawn)
    expected = model.masker.finish(drawn, model.target.learn(img, attend=True).attention_BHW)
    assert torch.equal(output.mask.hidden_BHW, expected.hidden_BHW)
    assert not torch.equal(output.mask.hidden_BHW, drawn.hidden_BHW)
    by_hand = model(img, PatchMask(expected.hidden_BHW, expected.visible))
    assert torch.equal(by_hand.prediction, output.prediction)
    assert torch.equal(by_hand.loss, output.loss)


@torch.no_grad()
def test_each_of_several_masks_of_an_image_follows_its_own_draw_and_the_images_attention():
    model, img = model_of().eval(), images(2)
    masks = model.masker.sample(6, torch.Generator().manual_seed(0), CPU)
    output = model(img, masks)
    attention = model.target.learn(img, attend=True).attention_BHW
    for row in range(6):
        alone = model.masker.finish(masks.rows(row, row + 1), attention[row // 3 : row // 3 + 1])
        assert torch.equal(output.mask.hidden_BHW[row], alone.hidden_BHW[0])
    assert len({tuple(row.flatten().tolist()) for row in output.mask.hidden_BHW}) == 6


@torch.no_grad()
def test_mask_made_by_hand_stays_as_it_is():
    model, img = model_of().eval(), images(2)
    hidden = torch.zeros(4, 8, dtype=torch.bool)
    hidden[:, ::2] = True
    assert torch.equal(model(img, hidden).mask.hidden_BHW, hidden.expand(2, -1, -1))


def test_attention_grows_with_what_the_class_token_takes():
    model, img = model_of().eval(), images(2)
    attention = model.target.learn(img, attend=True).attention_BHW
    assert attention.shape == (2, *model.encoder.spec.grid)
    assert (attention > 0).all()
    assert (attention.sum(dim=(1, 2)) < 1).all()  # the class token takes something from itself
    assert not attention.requires_grad
    assert IMAGE.height == 8 * attention.shape[1]
