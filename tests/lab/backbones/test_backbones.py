"""What models of timm can do: the survey of one, and the table of many."""

import re

import pytest
import timm
from mim_toolkit.backbones import main
from processes import ROOT

from mim.lab.backbones import survey as surveys
from mim.lab.backbones.survey import WAYS, Backbone, survey
from mim.lab.backbones.table import append_row, lines, page, read_rows
from mim.structures import ImageSpec

VIT = Backbone(
    "vit", "vision_transformer", ImageSpec(3, 8, 8), (4,), 10, 2_000_000_000, {"drop": 0.25}, {"sparse": "no"}
)


def test_survey_of_a_transformer_has_the_operations_of_its_formula():
    backbone = survey("test_vit")  # 160 px, patches of 16, width 64, depth 6, MLP 3 x wider, a class token
    tokens, width = 101, 64

    def operations(tokens: int) -> int:
        products = tokens * width * (3 * width + width + 2 * 3 * width)
        return 2 * 6 * (products + 2 * tokens**2 * width)

    embedding = 2 * 100 * 16**2 * 3 * width
    assert backbone.flops == operations(tokens) + embedding
    assert backbone.shares["drop"] == pytest.approx((operations(26) + embedding) / backbone.flops)
    assert backbone.shares["replace"] == 1
    assert backbone.strides == (16,)
    assert backbone.parameters == sum(p.numel() for p in timm.create_model("test_vit", num_classes=0).parameters())


def test_survey_says_why_a_way_does_not_work():
    backbone = survey("test_byobnet")
    assert "every token of the grid" in backbone.reasons["drop"]
    assert backbone.shares["replace"] == 1
    assert set(backbone.shares) | set(backbone.reasons) == set(WAYS)


@pytest.mark.slow
def test_survey_takes_a_larger_image_where_the_strides_do_not_divide_that_of_the_weights():
    backbone = survey("xception41")  # 299 px
    assert backbone.image == ImageSpec(3, 320, 320)
    assert backbone.strides[-1] == 32


@pytest.mark.slow
def test_survey_without_padding_has_no_shares():
    assert survey("inception_v3").shares == {}  # without padding, no map is a grid of the image


def test_rows_survive_a_file(tmp_path):
    refused = Backbone("odd", "odd", reasons=dict.fromkeys(WAYS, "it takes 7, and 8"))
    rows = tmp_path / "rows.csv"
    full = Backbone(
        **{**{name: getattr(VIT, name) for name in VIT.__slots__}, "reasons": {"sparse": "a", "replace": "b"}}
    )
    for each in (full, refused):
        append_row(rows, each)
    assert list(read_rows(rows).values()) == [full, refused]
    assert read_rows(tmp_path / "none.csv") == {}


def test_command_goes_on_from_its_rows(tmp_path, monkeypatch, capsys):
    asked = []

    def once(model):
        asked.append(model)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return Backbone(model, "module", reasons=dict.fromkeys(WAYS, "none"))

    monkeypatch.setattr(surveys, "survey", once)
    rows = tmp_path / "rows.csv"
    arguments = ["test_vit", "test_resnet", "--rows", str(rows)]
    assert main(arguments) == 130
    assert main([*arguments, "--page", str(tmp_path / "page.md")]) == 0
    assert asked == ["test_vit", "test_resnet", "test_resnet"]
    assert list(read_rows(rows)) == ["test_vit", "test_resnet"]
    capsys.readouterr()


def test_page_counts_the_ways_and_numbers_the_reasons():
    other = Backbone("other", "odd", reasons=dict.fromkeys(WAYS, "why"))
    text = page(
        [VIT.__class__(*[getattr(VIT, n) for n in VIT.__slots__[:-1]], {"sparse": "no", "replace": "x"}), other], "1"
    )
    assert "**1 of 2** models" in text
    assert "| vit | 25% | [1] | [2] | 8 | 4 | 0.0 | 2.00 |" in text
    assert "1. no\n2. x\n" in text
    assert "| other | [1] | [1] | [1] |  |  | 0.0 | 0.00 |" in text
    assert lines(other) == ["other: why"]


# ---------------------------------------------------------------- the shipped table


ROWS, PAGE = ROOT / "docs" / "backbones.csv", ROOT / "docs" / "backbones.md"


def test_shipped_page_is_that_of_its_rows_and_most_models_can_be_pretrained():
    backbones, text = list(read_rows(ROWS).values()), PAGE.read_text()
    version = re.search(r"timm ([\d.]+\d)", text)[1]
    assert page(backbones, version) == text
    assert len(backbones) > 1300
    assert sum(bool(each.shares) for each in backbones) >= 0.95 * len(backbones)
    assert sum("drop" in each.shares for each in backbones) >= 250
    assert all(
        set(each.shares) | set(each.reasons) == set(WAYS) and "" not in each.reasons.values() for each in backbones
    )
    if version == timm.__version__:
        assert {each.model for each in backbones} == set(timm.list_models())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_vit", "test_convnext", "test_byobnet"])
def test_shipped_row_is_what_a_survey_finds_today(name):
    then, now = read_rows(ROWS)[name], survey(name)
    assert {way: round(share, 4) for way, share in now.shares.items()} == then.shares
    assert (now.strides, now.flops, now.reasons) == (then.strides, then.flops, then.reasons)
