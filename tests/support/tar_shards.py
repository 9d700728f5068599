"""Tar shards of digits, as the package webdataset writes them."""

import io
import tarfile
from pathlib import Path

from small_data import digit

Members = list[tuple[str, bytes]]


def png(number: int) -> bytes:
    file = io.BytesIO()
    digit(number).save(file, "PNG")
    return file.getvalue()


def sample(number: int, key: str = "", **more: bytes) -> Members:
    key = key or f"{number:04d}"
    return [(f"{key}.png", png(number)), *((f"{key}.{ending}", content) for ending, content in more.items())]


def write_shard(path: Path, members: Members) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def write_shards(folder: Path, shards: int = 3, each: int = 5) -> str:
    """Digits with their number, modulo 7, in .cls."""
    for shard in range(shards):
        numbers = range(shard * each, (shard + 1) * each)
        members = [member for number in numbers for member in sample(number, cls=str(number % 7).encode())]
        write_shard(folder / f"digits-{shard:03d}.tar", members)
    return str(folder / f"digits-{{000..{shards - 1:03d}}}.tar")
