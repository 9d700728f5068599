"""A run on an object store, killed and resumed, equals one on files that nobody interrupted: to the bit."""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from interrupted import finished, launch, named
from processes import PARTS, TINY, last_state, losses, same
from range_server import serving
from tar_shards import write_shards
from warm import Warm

from mim.data.settings import DataSettings
from mim.data.sources.webdataset import WebDataset

PATTERN = "digits-{000..003}.tar"
KEYS = {
    **TINY,
    "DATA.name": "webdataset",
    "DATA.val_share": 0.1,
    "DATA.batch_size": 16,
    "TRAIN.batch": 16,
    "TRAIN.epochs": 12,  # of 8 steps
    "EVALUATE.samples": 8,
    "EVALUATE.knn": 0,
    "CHECKPOINT.every_minutes": 1e-6,
}


@pytest.mark.slow
def test_remote_run_that_is_killed_and_resumed_equals_one_on_files(warm: Warm, tmp_path: Path) -> None:
    write_shards(tmp_path / "store", shards=4, each=40)
    local = finished(warm, tmp_path / "local", {**KEYS, "DATA.path": tmp_path / "store" / PATTERN, "DATA.workers": 1})
    with serving(tmp_path / "store", "--latency-ms", "20", "--fail-every", "9", log=tmp_path / "log") as url:
        for cache_gib in (1.0, 2e-4):  # all shards, and one of them
            keys = {**KEYS, "DATA.path": f"{url}/{PATTERN}", "DATA.workers": 2, "DATA.cache_gib": cache_gib}
            keys["DATA.cache"] = tmp_path / f"copies-{cache_gib}"
            output = tmp_path / f"remote-{cache_gib}"
            process = launch(warm, output, keys)
            deadline = time.monotonic() + 120
            while named(output) < 7:
                assert time.monotonic() < deadline, (tmp_path / f"{output.name}.log").read_text()
                time.sleep(0.02)
            process.kill()
            process.wait()
            assert named(output) < 90
            finished(warm, output, keys)
            assert len(losses(local)) == 96
            assert losses(output)[-10:] == losses(local)[-10:]
            states = last_state(output), last_state(local)
            same(*({part: state[part] for part in PARTS} for state in states))
    assert (tmp_path / "log").read_text().count(" 503") > 3


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a server that speaks S3, in a process of its own."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("DEFAULT_REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not _answers(url):
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        server.kill()
        server.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except OSError:
        return False
    return True


@pytest.mark.slow
def test_remote_shards_on_a_server_that_speaks_s3(s3: str, tmp_path: Path) -> None:
    import s3fs

    pattern = write_shards(tmp_path / "data")
    store = s3fs.S3FileSystem()
    store.mkdir("bucket")
    store.put(f"{tmp_path}/data/*.tar", "bucket/shards/")
    here = WebDataset("train", DataSettings(path=pattern, channels=1), val_share=0)
    for address in ("s3://bucket/shards/digits-{000..002}.tar", "s3://bucket/shards/*.tar", "s3://bucket/shards"):
        for cache_gib in (0.0, 1.0):
            settings = DataSettings(path=address, channels=1)
            there = WebDataset("train", settings, val_share=0, cache_gib=cache_gib, cache=str(tmp_path / "copies"))
            assert len(there) == len(here) == 15
            assert there.labels.tolist() == here.labels.tolist()
            assert all(there.read(index).tobytes() == here.read(index).tobytes() for index in range(15))
    assert there.describe(0) == "s3://bucket/shards/digits-000.tar/0000.png"
    with pytest.raises(ValueError, match=r"s3://none/a\.tar does not exist"):
        WebDataset("train", DataSettings(path="s3://none/a.tar", channels=1))
