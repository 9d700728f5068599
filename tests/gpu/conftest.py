"""For the tests of this folder: the device they run on. MIM_TEST_DEVICE=cpu runs them on a CPU, to try them out."""

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first product; see TRAIN.deterministic


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The first GPU."""
    kind = os.environ.get("MIM_TEST_DEVICE", "cuda")
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    return torch.device(kind, 0) if kind == "cuda" else torch.device(kind)


@pytest.fixture
def no_host_sync(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Inside, PyTorch raises where the host would wait for the GPU."""

    @contextmanager
    def forbid() -> Iterator[None]:
        if device.type != "cuda":
            yield
            return
        torch.cuda.synchronize(device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return forbid


@pytest.fixture
def exact(device: torch.device) -> Iterator[None]:
    """Inside, products and convolutions in fp32 are not rounded to TF32."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
