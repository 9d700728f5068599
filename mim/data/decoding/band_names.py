"""Names of the channels of a TIFF: those of OME-TIFF, and the descriptions of bands that GDAL writes.

Sources: OME data model, Channel@Name; GDAL's GTiff driver, tag 42112 (GDAL_METADATA).
"""

from collections.abc import Iterator
from typing import Any
from xml.etree import ElementTree

GDAL_METADATA = 42112


def band_names(stack: Any, page: Any) -> tuple[str, ...]:
    """The names, in the order of channels; empty where the file has none, or not one for each.

    Args:
        stack: the file, a TiffFile of tifffile.
        page: its first page.
    """
    try:
        if stack.ome_metadata:
            return _of_ome(stack.ome_metadata)
        tag = page.tags.get(GDAL_METADATA)
        return _of_gdal(str(tag.value), page.samplesperpixel) if tag is not None else ()
    except ElementTree.ParseError:
        return ()


def _elements(text: str) -> Iterator[ElementTree.Element]:
    return ElementTree.fromstring(text).iter()  # noqa: S314  (expat bounds entities, and tifffile parses the same text)


def _of_ome(text: str) -> tuple[str, ...]:
    """Those of the first image."""
    for element in _elements(text):
        if element.tag.endswith("}Pixels"):
            names = [channel.get("Name", "") for channel in element if channel.tag.endswith("}Channel")]
            return tuple(names) if all(names) else ()
    return ()


def _of_gdal(text: str, count: int) -> tuple[str, ...]:
    items = [item for item in _elements(text) if item.tag == "Item" and item.get("role") == "description"]
    name_of = {int(item.get("sample", "0")): (item.text or "").strip() for item in items}
    names = [name_of.get(number, "") for number in range(count)]
    return tuple(names) if all(names) else ()
