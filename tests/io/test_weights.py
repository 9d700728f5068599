"""Reading weights: what old scripts left beside them is plain values, and nothing of a hostile file is run."""

import argparse
import contextlib
import importlib
import pathlib
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from foreign_files import mae_pretrained, simmim_config, simmim_pretrained, swin, write_mae, write_simmim
from safetensors.torch import save_file
from yacs.config import CfgNode

import mim
from mim import convert
from mim.interop import read
from mim.io.weights import read_safetensors, read_weights

# -------------------------------------------------------------------- what old scripts pickled


def test_read_weights_reads_a_namespace_with_paths_as_plain_fields(tmp_path: Path) -> None:
    model = mae_pretrained()
    content = read_weights(write_mae(tmp_path / "a.pth", model, input_size=32, data_path=Path("images")), "IN")
    assert type(content["args"]) is argparse.Namespace
    fields = vars(content["args"])
    assert (fields["input_size"], fields["batch_size"], fields["blr"]) == (32, 64, 1.5e-4)
    for key, text in (("output_dir", "output"), ("data_path", "images")):
        assert isinstance(fields[key], pathlib.PurePath)
        assert not isinstance(fields[key], pathlib.Path)  # it can open nothing
        assert str(fields[key]) == text
    assert list(content["model"]) == list(model)
    assert all(torch.equal(content["model"][name], weight) for name, weight in model.items())


def test_read_weights_reads_a_path_of_windows(tmp_path: Path) -> None:
    """As text: no such path can be made here, so its pickle is written by hand."""
    path = tmp_path / "a.pth"
    torch.save({"args": argparse.Namespace(output=pathlib.PosixPath("out"))}, path)
    content = path.read_bytes()
    name = next(name for name in (b"cpathlib\nPosixPath\n", b"cpathlib._local\nPosixPath\n") if name in content)
    _rewrite_pickle(path, name, name.replace(b"Posix", b"Windows"))
    assert str(read_weights(path, "IN")["args"].output) == "out"


def _rewrite_pickle(path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {entry: archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for entry, data in content.items():
            archive.writestr(entry, data.replace(old, new) if entry.endswith("data.pkl") else data)


def test_read_weights_reads_a_yacs_config_as_a_mapping(tmp_path: Path) -> None:
    model = simmim_pretrained(swin(), stride=8)
    config = read_weights(write_simmim(tmp_path / "a.pth", model, simmim_config(size=192, window=6)), "IN")["config"]
    assert isinstance(config, dict)
    assert not isinstance(config, CfgNode)
    assert (config["DATA"]["IMG_SIZE"], config["MODEL"]["SWIN"]["WINDOW_SIZE"], config["BASE"]) == (192, 6, [""])


def test_read_weights_leaves_what_it_allows_to_itself(tmp_path: Path) -> None:
    """Reading one file does not make PyTorch more trusting for anyone else."""
    path = write_mae(tmp_path / "a.pth", mae_pretrained())
    read_weights(path, "IN")
    with pytest.raises(pickle.UnpicklingError, match="Namespace"):
        torch.load(path, weights_only=True)


# -------------------------------------------------------------------- hostile files


class Trap:
    """Creates a file when it is unpickled by a reader that runs code."""

    def __init__(self, path: Path):
        self.path = str(path)

    def __reduce__(self) -> tuple:
        return open, (self.path, "w")


class SlyNamespace(argparse.Namespace):
    """Looks like arguments, and runs code when its fields come."""

    def __setstate__(self, state: dict) -> None:
        Path(state["path"]).touch()


class SlyNode(CfgNode):
    """Looks like a config, and runs code when its fields come."""

    def __reduce__(self) -> tuple:
        return SlyNode, (), {"path": self["path"]}

    def __setstate__(self, state: dict) -> None:
        Path(state["path"]).touch()


def node(trap: Trap) -> CfgNode:
    """A config with a trap in it, which its constructor would copy, and so spring."""
    config = CfgNode()
    dict.__setitem__(config, "A", [trap])
    return config


HOSTILE = {  # by kind: what is pickled, with a path that it would create, and what the error must name
    "top level": (lambda path: Trap(path), "open"),
    "beside the weights": (lambda path: {"model": mae_pretrained(), "trap": Trap(path)}, "open"),
    "in args": (lambda path: {"model": mae_pretrained(), "args": argparse.Namespace(a=Trap(path))}, "open"),
    "in config": (lambda path: {"model": mae_pretrained(), "config": node(Trap(path))}, "open"),
    "in the state dict": (lambda path: {"model": {**mae_pretrained(), "norm.bias": Trap(path)}}, "open"),
    "as a key": (lambda path: {"model": {**mae_pretrained(), (Trap(path),): 1}}, "open"),
    "Namespace": (lambda path: {"model": mae_pretrained(), "args": SlyNamespace(path=str(path))}, "SlyNamespace"),
    "CfgNode": (lambda path: {"model": mae_pretrained(), "config": SlyNode({"path": str(path)})}, "SlyNode"),
}


def unsafe(path: Path) -> None:
    """What a reader does that runs code."""
    with contextlib.suppress(Exception):
        torch.load(path, weights_only=False)


def refused_by_all(path: Path, out: Path) -> list[str]:
    """The message of every way into this toolkit that takes a file of weights."""
    messages = []
    encoder = mim.load_encoder(
        write_mae(out.parent / "good.pth", mae_pretrained(), input_size=32), ["ENCODER.heads", "2"]
    )
    ways = (
        lambda: read_weights(path, "IN"),
        lambda: read(path, "IN"),
        lambda: mim.load_encoder(path),
        lambda: convert.convert(path, out, "mim"),
        lambda: mim.interop.initialise.initialise_encoder(encoder, path),
    )
    for way in ways:
        with pytest.raises(ValueError, match=path.name) as caught:
            way()
        messages.append(str(caught.value))
    assert not out.exists()
    return messages


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickle_is_refused_by_name_and_nothing_runs(tmp_path: Path, kind: str, legacy: bool) -> None:
    write, named = HOSTILE[kind]
    created, path = tmp_path / "created", tmp_path / "hostile.pth"
    torch.save(write(created), path, _use_new_zipfile_serialization=not legacy)
    for message in refused_by_all(path, tmp_path / "out.pt"):
        assert f"{path} cannot be read: " in message
        assert named in message
        assert "weights_only" not in message  # PyTorch's advice is to run it
    assert not created.exists()
    unsafe(path)
    assert created.exists(), "the trap must be one"


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(6))
def test_hostile_bare_pickle_is_refused_and_nothing_runs(tmp_path: Path, protocol: int) -> None:
    created, path = tmp_path / "created", tmp_path / "hostile.pkl"
    path.write_bytes(pickle.dumps({"model": Trap(created)}, protocol))
    refused_by_all(path, tmp_path / "out.pt")
    assert not created.exists()
    pickle.loads(path.read_bytes())["model"].close()
    assert created.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_hostile_pickle_under_the_name_of_a_safe_format_is_refused_and_nothing_runs(
    tmp_path: Path, legacy: bool
) -> None:
    created, folder = tmp_path / "created", tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit_mae"}')
    for path in (tmp_path / "hostile.safetensors", folder / "model.safetensors"):
        torch.save({"model": Trap(created)}, path, _use_new_zipfile_serialization=not legacy)
        source = path if path.parent == tmp_path else folder
        for message in refused_by_all_safe(source, tmp_path / "out.pt"):
            assert f"{path} cannot be read: " in message
    assert not created.exists()


def refused_by_all_safe(path: Path, out: Path) -> list[str]:
    messages = []
    for way in (lambda: mim.load_encoder(path), lambda: convert.convert(path, out, "mim"), lambda: read(path, "IN")):
        with pytest.raises(ValueError, match="cannot be read") as caught:
            way()
        messages.append(str(caught.value))
    assert not out.exists()
    return messages


def test_folder_without_safetensors_is_refused_where_a_pickle_lies_in_it(tmp_path: Path) -> None:
    created, folder = tmp_path / "created", tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "vit"}')
    torch.save({"weight": Trap(created)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"model\.safetensors does not exist"):
        mim.load_encoder(folder)
    assert not created.exists()


MODULE = "from pathlib import Path\nPath({path!r}).touch()\n"


@pytest.mark.parametrize("holds", ["config", "mim_config"])
def test_plugins_named_in_a_file_of_weights_are_not_imported(tmp_path: Path, monkeypatch, holds: str) -> None:
    """PLUGINS of a config are a user's own; those in a downloaded file are someone else's."""
    created, plugin = tmp_path / "created", f"hostile_plugin_of_{holds}"
    (tmp_path / f"{plugin}.py").write_text(MODULE.format(path=str(created)))
    monkeypatch.syspath_prepend(tmp_path)
    good = write_mae(tmp_path / "good.pth", mae_pretrained(), input_size=32)
    convert.convert(good, tmp_path / "own.pt", "mim", overrides=["ENCODER.heads", "2", "HEAD.heads", "2"])
    if holds == "config":
        content = torch.load(tmp_path / "own.pt", weights_only=True)
        assert "PLUGINS: []\n" in content["config"]
        content["config"] = content["config"].replace("PLUGINS: []\n", f"PLUGINS: [{plugin}]\n")
    else:
        text = f"PLUGINS: [{plugin}]\nENCODER: {{heads: 2}}\nHEAD: {{heads: 2}}\nDATA: {{image_size: [32, 32]}}\n"
        content = {"model": mae_pretrained(), "mim_config": text}
    torch.save(content, tmp_path / "hostile.pt")
    assert mim.load_encoder(tmp_path / "hostile.pt").spec.width == 24
    convert.convert(tmp_path / "hostile.pt", tmp_path / "out.pt", "mim")
    assert not created.exists()
    assert "\nPLUGINS: []\n" in torch.load(tmp_path / "out.pt", weights_only=True)["config"]
    importlib.import_module(plugin)
    assert created.exists(), "the trap must be one"


@pytest.mark.parametrize(
    "text", ["!!python/object/apply:os.mkdir [created]", "ENCODER: !!python/object/apply:os.mkdir [created]"]
)
def test_yaml_in_a_file_of_weights_makes_no_objects(tmp_path: Path, monkeypatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": mae_pretrained(), "mim_config": text}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"does not hold ENCODER\.heads"):
        mim.load_encoder(tmp_path / "a.pth")
    assert not (tmp_path / "created").exists()


# -------------------------------------------------------------------- damaged files


def test_read_weights_that_are_missing_or_a_folder_are_refused(tmp_path: Path) -> None:
    for reader in (read_weights, read_safetensors):
        for path in (tmp_path / "none.pth", tmp_path):
            with pytest.raises(ValueError, match=rf"IN {path} does not exist"):
                reader(path, "IN")


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_read_weights_cut_short_are_refused(tmp_path: Path, suffix: str, share: float) -> None:
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save({"model": mae_pretrained()}, path)
    else:
        save_file(mae_pretrained(), path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(ValueError, match=rf"IN {path} cannot be read: "):
        read(path, "IN")


def test_read_safetensors_gives_weights_and_the_texts_of_the_header(tmp_path: Path) -> None:
    weights = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    save_file(weights, tmp_path / "a.safetensors", metadata={"converted_from": "somewhere"})
    tensors, texts = read_safetensors(tmp_path / "a.safetensors", "IN")
    assert texts == {"converted_from": "somewhere"}
    assert all(
        torch.equal(tensors[name], weight) and tensors[name].dtype == weight.dtype for name, weight in weights.items()
    )
