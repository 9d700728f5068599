"""The end of a heartbeat: a process that ends right after its last beat ends cleanly."""

import subprocess
import sys

import pytest
from processes import ROOT

ENDS = """
import threading
from contextlib import suppress
from datetime import timedelta

import torch.distributed as dist
from mim.engine.distributed import heartbeat

class Slow:
    '''A store in which the beats of a thread take a while, inside of PyTorch.'''

    def __init__(self):
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True)
        self.other = dist.TCPStore("127.0.0.1", self.store.port, is_master=False)

    def set(self, key, value):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            with suppress(RuntimeError):
                self.other.wait(["what nobody sets"], timedelta(seconds=0.4))
        self.store.set(key, value)

inside = threading.Event()
heartbeat.INTERVAL = 0.01
store = Slow()
beats = heartbeat.Heartbeat(store, rank=0, size=1, timeout=60)
inside.wait()
beats.leave("done")
print(store.store.get("beat-0").decode())
"""


@pytest.mark.slow
def test_process_that_ends_in_the_middle_of_a_beat_ends_cleanly() -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDS], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert '"left": "done"' in done.stdout
