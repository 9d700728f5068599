"""The attentive readout: what its two forms compute, by their published formulas, and what it refuses.

Shapes: B batch, N patch tokens, D width, Q queries, H heads, K outputs.
"""

import math
from dataclasses import replace

import pytest
import torch
from small_models import generator
from torch.utils.flop_counter import FlopCounterMode

from mim.readouts.attentive import Attentive
from mim.structures import EncoderSpec, Features

SPEC = EncoderSpec(width=24, stride=8, patch=8, grid=(3, 4), drops_hidden=False, num_prefix=3)
ROLES = ["none", "beside", "attended"]


def build(spec=SPEC, outputs=5, **keys) -> Attentive:
    """In float64, with norms and biases that have an effect."""
    torch.manual_seed(0)
    readout = Attentive(spec, outputs, **keys).double()
    with torch.no_grad():
        for parameter in readout.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(1), dtype=torch.float64))
    return readout


def features(spec=SPEC, batch=3, seed=2) -> Features:
    """Noise in which class token, registers and patches differ."""

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=chance, dtype=torch.float64)

    chance = generator(seed)
    tokens_BND = noise(batch, math.prod(spec.grid), spec.width).requires_grad_()
    prefix_BKD = noise(batch, spec.num_prefix, spec.width).requires_grad_() if spec.num_prefix else None
    return Features(tokens_BND, spec.grid, prefix_BKD=prefix_BKD)


def attended(inputs: Features, role: str) -> torch.Tensor:
    """The tokens that the queries may see: never a register."""
    if role != "attended":
        return inputs.tokens_BND
    return torch.cat([inputs.prefix_BKD[:, :1], inputs.tokens_BND], dim=1)


def gradients(scores_BK: torch.Tensor, readout: Attentive, inputs: Features) -> dict[str, torch.Tensor]:
    """Of a sum with random weights, for each parameter and for the tokens."""
    weights_BK = torch.randn(scores_BK.shape, generator=generator(3), dtype=torch.float64)
    named = {**dict(readout.named_parameters()), "tokens": inputs.tokens_BND, "prefix": inputs.prefix_BKD}
    found = torch.autograd.grad((scores_BK * weights_BK).sum(), list(named.values()), allow_unused=True)
    return {name: torch.zeros(()) if each is None else each for name, each in zip(named, found, strict=True)}


def assert_same(readout: Attentive, inputs: Features, expected_BK: torch.Tensor) -> None:
    """Equal scores and gradients."""
    torch.testing.assert_close(readout(inputs), expected_BK, rtol=1e-12, atol=1e-12)
    expected = gradients(expected_BK, readout, inputs)
    for name, gradient in gradients(readout(inputs), readout, inputs).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12, msg=name)


# ---------------------------------------------------------------- efficient


def efficient(readout: Attentive, inputs: Features, role: str, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What poolings/ep.py gathers, value by value, (B, D), and the attention (B, Q, H, N)."""
    tokens_BND, queries_QD = attended(inputs, role), readout.pool.queries
    values_BND = torch.einsum("bnd,ed->bne", tokens_BND, readout.pool.value.weight)
    width, count = queries_QD.shape[1], len(queries_QD)
    gathered, shares = [], []
    for query in range(count):
        for head in range(heads):
            of_keys = slice(head * width // heads, (head + 1) * width // heads)
            first = (query * heads + head) * width // (count * heads)
            of_values = slice(first, first + width // (count * heads))
            scores_BN = torch.einsum("d,bnd->bn", queries_QD[query, of_keys], tokens_BND[..., of_keys])
            exp_BN = (scores_BN / math.sqrt(width / heads)).exp()
            shares.append(exp_BN / exp_BN.sum(dim=1, keepdim=True))
            gathered.append(torch.einsum("bn,bnv->bv", shares[-1], values_BND[..., of_values]))
    return torch.cat(gathered, dim=1), torch.stack(shares, dim=1).unflatten(1, (count, heads))


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("queries", "heads"), [(4, 1), (3, 2), (1, 4)])
def test_efficient_is_the_published_formula_with_its_gradients(queries, heads, role):
    readout, inputs = build(queries=queries, heads=heads, class_token=role), features()
    gathered_BC, _ = efficient(readout, inputs, role, heads)
    if role == "beside":
        gathered_BC = torch.cat([gathered_BC, inputs.prefix_BKD[:, 0]], dim=1)
    centred_BC = gathered_BC - gathered_BC.mean(dim=0)
    normed_BC = centred_BC / (centred_BC.square().mean(dim=0) + 1e-6).sqrt()
    expected_BK = torch.einsum("bc,kc->bk", normed_BC, readout.linear.weight) + readout.linear.bias
    assert_same(readout, inputs, expected_BK)


def test_efficient_is_normed_by_running_statistics_in_eval_mode():
    readout, inputs = build(queries=4), features()
    gathered_BC, _ = efficient(readout, inputs, "none", 1)
    readout.norm.running_mean.copy_(torch.linspace(-1, 1, 24))
    readout.norm.running_var.copy_(torch.linspace(0.5, 2, 24))
    normed_BC = (gathered_BC - torch.linspace(-1, 1, 24)) / (torch.linspace(0.5, 2, 24) + 1e-6).sqrt()
    expected_BK = normed_BC @ readout.linear.weight.T + readout.linear.bias
    torch.testing.assert_close(readout.eval()(inputs), expected_BK, rtol=1e-6, atol=1e-6)
    assert [name for name, _ in readout.named_parameters()] == [
        *("pool.queries", "pool.value.weight", "linear.weight", "linear.bias")
    ]


def test_efficient_costs_a_fraction_of_a_linear_map_of_every_token():
    """A ViT-B at 224 px: 196 x 768 x 768 products for the values of all tokens alone."""
    spec = replace(SPEC, width=768, grid=(14, 14))
    with torch.device("meta"):
        readout, tokens_BND = Attentive(spec, 10), torch.empty(1, 196, 768)
    with FlopCounterMode(display=False) as counter:
        readout.eval()(Features(tokens_BND, spec.grid))
    products = counter.get_total_flops() // 2
    assert products == 2 * 32 * 196 * 768 + 768 * 768 + 768 * 10
    assert products < 196 * 768 * 768 / 10


# ---------------------------------------------------------------- block


def attend(queries_BMD, tokens_BND, heads, q, k, v) -> tuple[torch.Tensor, torch.Tensor]:
    """Multi-head attention by its formula, from three pairs of weight and bias: what is gathered, and the shares."""
    size = queries_BMD.shape[2] // heads
    gathered, shares = [], []
    for start in range(0, size * heads, size):
        part = slice(start, start + size)
        q_BMd, k_BNd, v_BNd = (
            torch.einsum("bnd,ed->bne", x, weight[part]) + bias[part]
            for x, (weight, bias) in ((queries_BMD, q), (tokens_BND, k), (tokens_BND, v))
        )
        exp_BMN = (torch.einsum("bmd,bnd->bmn", q_BMd, k_BNd) / math.sqrt(size)).exp()
        shares.append(exp_BMN / exp_BMN.sum(dim=2, keepdim=True))
        gathered.append(torch.einsum("bmn,bnd->bmd", shares[-1], v_BNd))
    return torch.cat(gathered, dim=2), torch.stack(shares, dim=2)


def norm(x, layer) -> torch.Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    return centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias


def mlp(x, layer) -> torch.Tensor:
    hidden = torch.einsum("...d,ed->...e", x, layer.fc1.weight) + layer.fc1.bias
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return torch.einsum("...d,ed->...e", hidden, layer.fc2.weight) + layer.fc2.bias


def block_form(readout: Attentive, inputs: Features, role: str, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The queries behind V-JEPA 2's attentive pooler, (B, Q, D), and the attention (B, Q, H, N)."""
    pool, tokens_BND = readout.pool, attended(inputs, role)
    for block in pool.blocks:
        normed_BND = norm(tokens_BND, block.norm1)
        weights, biases = block.attn.qkv.weight.chunk(3), block.attn.qkv.bias.chunk(3)
        mixed_BND, _ = attend(normed_BND, normed_BND, heads, *zip(weights, biases, strict=True))
        tokens_BND = tokens_BND + mixed_BND @ block.attn.proj.weight.T + block.attn.proj.bias
        tokens_BND = tokens_BND + mlp(norm(tokens_BND, block.norm2), block.mlp)
    queries_BQD = pool.queries.expand(len(tokens_BND), -1, -1)
    layers = [(layer.weight, layer.bias) for layer in (pool.query, pool.key, pool.value)]
    gathered_BQD, shares_BQHN = attend(queries_BQD, norm(tokens_BND, pool.norm1), heads, *layers)
    queries_BQD = queries_BQD + gathered_BQD
    return queries_BQD + mlp(norm(queries_BQD, pool.norm2), pool.mlp), shares_BQHN


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize(("queries", "heads", "blocks"), [(1, 1, 0), (2, 3, 0), (1, 2, 2)])
def test_block_is_the_published_formula_with_its_gradients(queries, heads, blocks, role):
    readout = build(form="block", queries=queries, heads=heads, blocks=blocks, class_token=role)
    inputs = features()
    gathered_BC = block_form(readout, inputs, role, heads)[0].flatten(1)
    if role == "beside":
        gathered_BC = torch.cat([gathered_BC, inputs.prefix_BKD[:, 0]], dim=1)
    assert_same(readout, inputs, gathered_BC @ readout.linear.weight.T + readout.linear.bias)


@pytest.mark.slow  # transformers is imported; the formula above takes 0.04 s
def test_block_is_the_pooler_of_v_jepa_2_in_transformers():
    from transformers.models.vjepa2.configuration_vjepa2 import VJEPA2Config
    from transformers.models.vjepa2.modeling_vjepa2 import VJEPA2AttentivePooler

    shape = {"hidden_size": 24, "num_attention_heads": 4, "num_pooler_layers": 2, "layer_norm_eps": 1e-5}
    theirs = VJEPA2AttentivePooler(VJEPA2Config(**shape, attn_implementation="sdpa")).double()
    ours, inputs = build(form="block", heads=4, blocks=2), features()

    def copy_weights(source, target, names: str) -> None:
        """names: pairs `ours:theirs` of layers."""
        for pair in names.split():
            name, their_name = pair.split(":")
            target.get_submodule(their_name).load_state_dict(source.get_submodule(name).state_dict())

    shared = "norm1:layer_norm1 norm2:layer_norm2 mlp.fc1:mlp.fc1 mlp.fc2:mlp.fc2 "
    for block, layer in zip(ours.pool.blocks, theirs.self_attention_layers, strict=True):
        copy_weights(block, layer, shared + "attn.proj:self_attn.out_proj")
        for kind, weight, bias in zip("qkv", *(part.chunk(3) for part in block.attn.qkv.parameters()), strict=True):
            layer.self_attn.get_submodule(f"{kind}_proj").load_state_dict({"weight": weight, "bias": bias})
    cross = "query:cross_attn.q_proj key:cross_attn.k_proj value:cross_attn.v_proj"
    copy_weights(ours.pool, theirs.cross_attention_layer, shared + cross)
    theirs.query_tokens.data = ours.pool.queries.data[None]
    torch.testing.assert_close(ours.pool(inputs.tokens_BND), theirs(inputs.tokens_BND), rtol=1e-11, atol=1e-12)


def test_block_starts_as_published():
    """Truncated normal of 0.02, and what ends a branch divided by sqrt(2 layer)."""
    torch.manual_seed(0)
    pool = Attentive(replace(SPEC, width=192), 5, form="block", blocks=3).pool
    stds = {name: round(weight.std().item() * 50, 2) for name, weight in pool.named_parameters() if weight.ndim > 1}
    for layer in (1, 2, 3):
        assert stds[f"blocks.{layer - 1}.attn.qkv.weight"] == pytest.approx(1, abs=0.03)
        for last in ("attn.proj", "mlp.fc2"):
            assert stds[f"blocks.{layer - 1}.{last}.weight"] == pytest.approx((2 * layer) ** -0.5, abs=0.02)
    assert stds["mlp.fc2.weight"] == pytest.approx(6**-0.5, abs=0.02)
    assert stds["key.weight"] == pytest.approx(1, abs=0.03)
    assert not pool.key.bias.any()
    single = Attentive(replace(SPEC, width=192), 5, form="block").pool
    assert single.mlp.fc2.weight.std().item() * 50 == pytest.approx(2**-0.5, abs=0.02)


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("form", ["efficient", "block"])
def test_attention_is_the_share_of_each_patch(form, role):
    readout, inputs = build(form=form, queries=3, heads=2, class_token=role), features()
    formula = efficient if form == "efficient" else block_form
    shares_BQHN = formula(readout, inputs, role, 2)[1]
    sums_BQH = readout.attention(inputs).sum(dim=-1)
    if role == "attended":
        torch.testing.assert_close(sums_BQH, 1 - shares_BQHN[..., 0])
        shares_BQHN = shares_BQHN[..., 1:]
    else:
        torch.testing.assert_close(sums_BQH, torch.ones_like(sums_BQH))
    assert shares_BQHN.shape == (3, 3, 2, 12)
    torch.testing.assert_close(readout.attention(inputs), shares_BQHN, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("form", ["efficient", "block"])
def test_the_class_token_counts_where_it_is_asked_for_and_registers_never(form):
    inputs = features()

    def change(number: int) -> Features:
        prefix_BKD = inputs.prefix_BKD.detach().clone()
        prefix_BKD[:, number] += 3
        return replace(inputs, prefix_BKD=prefix_BKD)

    for role in ROLES:
        readout = build(form=form, queries=2, heads=2, class_token=role).eval()
        before_BK = readout(inputs)
        assert torch.equal(readout(change(1)), before_BK)
        assert torch.equal(readout(change(0)), before_BK) == (role == "none")


# ---------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("width", "form", "queries", "heads"),
    [
        (768, "efficient", 32, 1),
        (192, "efficient", 32, 1),
        (1000, "efficient", 8, 1),  # 32 does not divide it
        (768, "block", 1, 12),
        (1024, "block", 1, 16),
        (24, "block", 1, 1),
        (325, "block", 1, 5),
        (330, "block", 1, 5),
        (202, "block", 1, 2),  # 3 does not divide it
    ],
)
def test_queries_and_heads_are_by_default_as_published(width, form, queries, heads):
    with torch.device("meta"):
        pool = Attentive(replace(SPEC, width=width), 5, form=form).pool
    assert (len(pool.queries), pool.heads) == (queries, heads)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"queries": 5}, r"READOUT.queries 5 times READOUT.heads 1 does not divide the encoder's width 24"),
        ({"queries": 4, "heads": 12}, r"queries 4 times READOUT.heads 12 does not divide"),
        ({"form": "block", "heads": 5}, r"READOUT.heads 5 does not divide the encoder's width 24"),
        ({"blocks": 2}, r"READOUT.blocks is 2, and READOUT.form efficient has none: use READOUT.form block"),
        ({"queries": -1}, r"READOUT.queries is -1: it must be at least 0"),
        ({"init_std": 0.0}, r"READOUT.init_std is 0.0: it must be above 0"),
    ],
)
def test_attentive_refuses_what_does_not_fit(keys, message):
    with pytest.raises(ValueError, match=message):
        Attentive(SPEC, 5, **keys)


@pytest.mark.parametrize("role", ROLES[1:])
def test_attentive_refuses_a_class_token_that_is_not_there(role):
    with pytest.raises(
        ValueError, match=f"READOUT.class_token is {role}, and this encoder has no class token: use none"
    ):
        Attentive(replace(SPEC, num_prefix=0), 5, class_token=role)
