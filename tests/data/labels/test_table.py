"""Tables: what a CSV, TSV or Parquet file holds, and what a user is told of one that cannot be read."""

import sys
from pathlib import Path

import pytest
from label_files import write_table

from mim.data.labels.settings import LabelSettings
from mim.data.labels.table import Table, read_table


def read(file: Path, **keys: object) -> Table:
    return read_table(LabelSettings(file=str(file), **keys))


COLUMNS = {"path": ["a.png", "b.png"], "défaut": ["fêlé", "a, b"]}


@pytest.mark.parametrize(
    ("name", "lines", "keys"),
    [
        ("t.csv", ["path,défaut", "a.png,fêlé", 'b.png,"a, b"'], {}),
        ("t.csv", ["path;défaut", "", "a.png;fêlé", "b.png; a, b "], {}),  # as spreadsheets write it in much of Europe
        ("t.tsv", ["path\tdéfaut", "a.png\tfêlé", "b.png\ta, b"], {}),
        ("t.txt", ["a.png\tfêlé", "b.png\ta, b"], {"header": ("path", "défaut")}),
        ("t.csv", ["path|défaut;x", "a.png"], {"delimiter": "tab", "header": ("path",)}),
    ],
    ids=["comma", "semicolon", "tab", "header", "delimiter"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_table_columns_are_the_same_for_each_delimiter_and_byte_order_mark(
    tmp_path: Path, name: str, lines: list[str], keys: dict, encoding: str
) -> None:
    table = read(write_table(tmp_path, lines[0], lines[1:], name, encoding), **keys)
    expected = {"path": ["path|défaut;x", "a.png"]} if "delimiter" in keys else COLUMNS
    assert table.columns == expected


def test_table_without_names_of_columns_and_with_blanks_between_them(tmp_path: Path) -> None:
    """As elpv-dataset's labels.csv."""
    file = write_table(tmp_path, "images/cell0001.png  1.0   mono", ["images/cell0002.png  0.3333333333333333   poly"])
    table = read(file, delimiter="space", header=("path", "probability", "type"))
    assert table.columns["probability"] == ["1.0", "0.3333333333333333"]
    assert table.columns["type"] == ["mono", "poly"]
    assert table.where(1) == f"{file} line 2"


def test_table_line_is_that_of_the_file(tmp_path: Path) -> None:
    file = write_table(tmp_path, "path,note", ["a.png,x", "", 'b.png,"two\nlines"', "c.png,y"])
    table = read(file)
    assert [table.where(row) for row in (0, 2)] == [f"{file} line 2", f"{file} line 6"]


def test_table_in_another_encoding_names_the_byte_the_line_and_the_way_out(tmp_path: Path) -> None:
    file = write_table(tmp_path, "path,class", ["a.png,x", "b.png,fêlé"], encoding="cp1252")
    with pytest.raises(ValueError, match=r"is not in utf-8: byte 0xea in line 3.*LABELS\.encoding cp1252"):
        read(file)
    assert read(file, encoding="cp1252").columns["class"] == ["x", "fêlé"]
    with pytest.raises(ValueError, match=r"LABELS\.encoding cp-none is unknown"):
        read(file, encoding="cp-none")
    file.write_bytes("path,class\na.png,x\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"holds a zero byte.*utf-16-le"):
        read(file)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([""], "has no rows"),
        (["path,class"], "has no rows"),
        (["path,class", "a.png"], r"line 2 has 1 values, and there are 2 columns, path, class"),
        (["path,class", "a.png,x", "b.png,x,y"], r"line 3 has 3 values"),
        (["path,class,class", "a.png,x,y"], "two columns 'class'"),
    ],
)
def test_table_that_is_empty_or_uneven_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(write_table(tmp_path, lines[0], lines[1:]))


def test_table_that_is_missing_or_of_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LABELS\.file \S*none\.csv does not exist"):
        read(tmp_path / "none.csv")
    with pytest.raises(ValueError, match="is a folder"):
        read(tmp_path)
    (tmp_path / "t.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"ends with \.xlsx: .*save a spreadsheet as CSV"):
        read(tmp_path / "t.xlsx")
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"t\.parquet cannot be read as Parquet"):
        read(tmp_path / "t.parquet")


def test_table_column_that_is_missing_is_named_with_those_there_are(tmp_path: Path) -> None:
    table = read(write_table(tmp_path, "file,class", ["a.png,x"]))
    with pytest.raises(ValueError, match=r"LABELS\.path_column path is no column of .*: Allowed: class, file"):
        table.column("LABELS.path_column", "path")


def test_table_of_parquet_has_texts_numbers_lists_and_missing_values(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    columns = {"path": ["a", "b"], "age": [3, None], "share": [0.25, 1.0], "tags": [["x", "y"], []]}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    table = read(tmp_path / "t.parquet")
    assert table.columns == {"path": ["a", "b"], "age": ["3", ""], "share": ["0.25", "1.0"], "tags": ["x|y", ""]}
    assert table.where(1) == f"{tmp_path}/t.parquet row 2"


def test_table_of_parquet_without_pyarrow_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "t.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"needs the package pyarrow .*mim-toolkit\[huggingface\]"):
        read(tmp_path / "t.parquet")
