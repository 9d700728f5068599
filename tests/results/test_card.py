"""Card: texts are escaped, and pictures are small enough for a notebook."""

import io
from base64 import b64decode

import numpy as np
from PIL import Image

from mim.results import Card, CardPicture, CardTable


def test_card_escapes_every_text():
    bad = '"><script>'
    table = CardTable(rows=((bad, bad),), headings=(bad, bad), bold=frozenset({(0, 1)}))
    card = Card(bad, bad, warnings=(bad,), tables=(table,), pictures=(CardPicture(bad, b""),), notes=(bad,))
    html = card.html()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 10
    assert html.count("<strong>") == 2


def test_card_makes_large_pictures_smaller_and_keeps_small_ones():
    for height, width, expected in ((30, 20, (20, 30)), (100, 4000, (1200, 30))):
        picture = CardPicture.of_array(np.zeros((height, width, 3), dtype=np.uint8), "black")
        stored = b64decode(picture.address.partition(",")[2])
        assert Image.open(io.BytesIO(stored)).size == expected
