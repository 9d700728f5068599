"""Every key has its line; docs/keys.md is what the program prints; a topic that is none names those there are."""

from pathlib import Path

import pytest

from mim import ConfigError
from mim.config import schema
from mim.config.keys import keys_text
from mim.registry import keys_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "keys.md"


def test_every_key_has_a_meaning() -> None:
    missing = [key for key, kind in schema.TOP.items() if not kind.meaning]
    for task in schema.TASKS:
        for section, cls in schema.SETTINGS[task].items():
            missing += [f"{section}.{key}" for key, kind in keys_of(cls).items() if not kind.meaning]
    for section in schema.FAMILIES:
        for name in schema.part_names(section):
            if not schema.family(section).named(name).__module__.startswith("mim."):
                continue
            keys = schema.part_keys(section, name)
            missing += [f"{section}.{name}.{key}" for key, kind in keys.items() if not kind.meaning]
    assert missing == []


def test_keys_document_is_what_the_program_prints() -> None:
    assert DOCUMENT.read_text() == keys_text() + "\n", "run: python -m mim.config.keys > docs/keys.md"


def test_keys_of_a_section_a_family_and_a_part() -> None:
    assert "`epochs` (an integer; default 100): passes over" in keys_text("TRAIN")
    vit, encoders = keys_text("ENCODER.vit"), keys_text("ENCODER")
    assert "`class_token`" in vit
    assert vit in encoders
    assert "ENCODER.swin" in encoders
    assert "ENCODER.swin" not in vit
    assert "`batch_size`" in keys_text("DATA.folder")
    assert "`SEED`" in keys_text("SEED")


@pytest.mark.parametrize(
    ("topic", "words"),
    [("TRIAN", "'TRAIN'"), ("ENCODER.vitt", "'vit'"), ("TRAIN.epochs", "TRAIN has no parts"), ("", "Allowed: AUGMENT")],
)
def test_keys_of_what_is_no_topic_names_the_way_out(topic: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        keys_text(topic)
    assert words in str(caught.value)
