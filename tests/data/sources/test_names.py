"""Texts in one buffer, and paths that are made where they are asked for."""

from pathlib import Path

import numpy as np

from mim.data.sources.names import ImageFiles, Names, Paths

TEXTS = ["a", "", "é", "\udcff\n", "日本.png", "z" * 300]


def test_names_are_what_was_put_in() -> None:
    names = Names.of(TEXTS)
    assert [names[index] for index in range(len(names))] == TEXTS
    assert names.content(1, 4) == b"" + "é".encode() + b"\xff\n"
    assert names.sizes().tolist() == [1, 0, 2, 2, 10, 300]
    assert len(Names.of([])) == 0
    assert Names.of([]).content(0, 0) == b""


def test_names_know_whether_they_are_whole() -> None:
    names = Names.of(TEXTS)
    assert names.are_whole()
    assert Names.of([]).are_whole()
    assert not Names(names.bytes_B[:-1], names.end_N).are_whole()
    assert not Names(names.bytes_B, names.end_N[::-1]).are_whole()


def test_paths_are_a_list_of_paths() -> None:
    files = ImageFiles(Names.of(["/data/a", "/"]), Names.of(["1.png", "2.png", "x"]), np.array([0, 0, 1], np.int32))
    paths = Paths(files, np.arange(3))
    everything = [Path("/data/a/1.png"), Path("/data/a/2.png"), Path("/x")]
    assert paths == everything
    assert everything == paths
    assert paths != everything[:2]
    assert paths[-1] == Path("/x")
    assert paths[::2] == everything[::2]
    assert Path("/x") in paths
    assert paths.index(Path("/data/a/2.png")) == 1
