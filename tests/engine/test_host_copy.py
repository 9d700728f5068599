"""HostCopy: a copy that further steps leave as it is, in memory that is used again, and that a file stores as it is."""

import io

import torch

from mim.engine.host_copy import HostCopy


def content() -> dict:
    weight = torch.randn(6, 4)
    return {
        "step": 3,
        "model": {
            "weight": weight,
            "same": weight,
            "half": torch.ones(5, dtype=torch.bfloat16),
            "none": torch.empty(0),
        },
        "layout": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "optimizer": {"state": {"weight": {"step": torch.tensor(7.0)}}, "param_groups": [{"betas": (0.9, 0.95)}]},
        "results": {"values": [1, 2]},
    }


def file_of(state: dict) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_copy_is_the_file_of_the_state_and_stays_it():
    state = content()
    before, copy = file_of(state), HostCopy().take(state)
    state["model"]["weight"].zero_()
    state["optimizer"]["state"]["weight"]["step"].add_(1)
    state["results"]["values"].append(3)
    assert file_of(copy) == before  # shared tensors, layouts and sizes of storages among it
    assert file_of(state) != before


def test_next_copy_takes_the_memory_of_the_one_before():
    host, state = HostCopy(), content()
    first = host.take(state)
    place, layout = first["model"]["weight"].data_ptr(), first["layout"].stride()
    state["model"]["weight"].fill_(2.0)
    second = host.take(state)
    assert second["model"]["weight"].data_ptr() == place
    assert second["model"]["weight"].eq(2).all()
    assert second["layout"].stride() == layout == state["layout"].stride()


def test_tensor_of_another_size_gets_memory_of_its_own():
    host = HostCopy()
    host.take({"weight": torch.zeros(4)})
    assert host.take({"weight": torch.ones(9), "more": torch.ones(2)})["weight"].tolist() == [1.0] * 9


def test_copy_needs_no_gradient():
    copy = HostCopy().take({"weight": torch.ones(3, requires_grad=True)})
    assert not copy["weight"].requires_grad
