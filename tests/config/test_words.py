"""KEY VALUE words of a command line; a key with several values, as a shell makes of a pattern, is told so."""

import pytest

from mim.config.words import pairs_of_words
from mim.errors import ConfigError


def test_words_become_pairs() -> None:
    assert pairs_of_words(["DATA.path", "a b", "SEED", "3"]) == [("DATA.path", "a b"), ("SEED", "3")]
    assert pairs_of_words([]) == []
    assert pairs_of_words(["DATA.path", "x", "train.epochs", "3"])[1] == ("train.epochs", "3")  # told of by its section


@pytest.mark.parametrize("after", [[], ["TRAIN.epochs", "2"]])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_words_of_a_pattern_that_a_shell_replaced_are_told_to_be_quoted(count: int, after: list[str]) -> None:
    names = [f"train-{number:06d}.tar" for number in range(count)]
    with pytest.raises(ConfigError) as caught:
        pairs_of_words(["SEED", "1", "DATA.path", *names, *after])
    text = str(caught.value)
    assert text.startswith(f"DATA.path takes one value and has {count}: train-000000.tar ")
    assert names[-1] in text
    assert "quotes" in text
    assert "DATA.path 'a-{000..146}.tar'" in text


def test_words_of_files_of_any_name_are_values_of_a_path() -> None:
    with pytest.raises(ConfigError, match=r"INIT\.checkpoint takes one value and has 2: last\.pt best\.pt"):
        pairs_of_words(["INIT.checkpoint", "last.pt", "best.pt"])


def test_words_of_a_list_are_told_to_be_one_word() -> None:
    with pytest.raises(ConfigError, match=r'DATA\.image_size takes one value and has 2: 96 160\. .*"\[96,160\]"'):
        pairs_of_words(["DATA.image_size", "96", "160", "SEED", "1"])
