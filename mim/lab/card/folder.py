"""The folder of a model: the encoder, its config and its card, checked before anything gets its name."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import timm
import torch
import yaml
from torch import Tensor

from mim.build.encoders import load_encoder, read_encoder
from mim.config import Config
from mim.encoders import Encoder
from mim.interop import ModelWeights, hub
from mim.interop.files import CONFIG
from mim.interop.formats import ENCODER
from mim.interop.huggingface import Preparation, write_encoder
from mim.io.files import write_atomically, write_text
from mim.lab.card.facts import PICTURES, Facts, is_local, read_facts
from mim.lab.card.figures import draw_curves, figures_of
from mim.lab.card.page import Place, card_text

CARD, SETTINGS, CURVES = "README.md", "config.yaml", "curves.png"
FILES = (CONFIG, hub.MODEL, SETTINGS, CURVES, *PICTURES.values(), CARD)  # the card last: it says that all is there
HEADER = "# The config of the run; paths of its machine are cut to their last name.\n"
TOLERANCE = 1e-5  # of features in timm, in parts of the largest one


@dataclass(frozen=True, slots=True)
class Request:
    """What is wanted beside the folder."""

    license_name: str = ""  # an identifier of the hub, such as apache-2.0
    runs: Sequence[Path] = ()  # further runs of the same recipe, for figures over seeds
    push: str = ""  # owner/name of a repository; empty for none
    private: bool = False
    revision: str = ""


def write_folder(run: Path, output: Path, request: Request) -> list[str]:
    """Writes a Hugging Face folder from a run folder, and pushes it where that is asked; returns a report in lines.

    The features of the encoder that was written are compared with those of the run first: as load_encoder reads it, and
    as timm does where it can.

    Raises ValueError where the run is not finished, mean and std are not known, the folder holds other files, or the
    hub does not take it. Nothing is written then but for a push that failed.
    """
    if request.push:
        hub.check_repository(request.push)
        hub.check_token()
    _check_output(output)
    facts = read_facts(run)
    if facts.cfg.DATA.mean == "estimate":
        raise ValueError(
            f"{run} does not say how its images were normalised, so it is not the folder of a finished run"
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}-") as temporary:
        folder = Path(temporary) / output.name
        encoder, cfg = read_encoder(run, ())
        obstacle = write_encoder(_weights(facts, encoder, cfg), folder, _preparation(facts))
        differences = _compare(encoder, folder, obstacle)
        place = Place(request.push or output.name, bool(request.push), request.revision, obstacle)
        _write_card(facts, folder, place, request)
        output.mkdir(exist_ok=True)
        for name in FILES:
            (output / name).unlink(missing_ok=True)
            if (folder / name).exists():
                (folder / name).replace(output / name)
    lines = [f"{run}: {encoder.title}", *differences, f"wrote {output}: {', '.join(_present(output))}"]
    if not request.push:
        return lines
    message = f"{facts.cfg.TASK} of {facts.dataset} by mim-toolkit"
    address = hub.push(output, request.push, request.private, request.revision, message)
    return [*lines, f"pushed: {address}", f'  to load: mim.load_encoder("{place.for_mim}")']


def _present(folder: Path) -> list[str]:
    return [name for name in FILES if (folder / name).exists()]


def _check_output(output: Path) -> None:
    """Raises ValueError where a folder holds anything but what this writes."""
    if output.exists() and not output.is_dir():
        raise ValueError(f"--output {output} is a file: --format huggingface writes a folder, so name one")
    others = sorted({path.name for path in output.iterdir()} - set(FILES)) if output.is_dir() else []
    if others:
        raise ValueError(f"--output {output} holds other files ({', '.join(others[:3])}): name a new folder")


def _weights(facts: Facts, encoder: Encoder, cfg: Config) -> ModelWeights:
    state = {ENCODER + name: weight for name, weight in encoder.state_dict().items()}
    sections = {**yaml.safe_load(cfg.to_yaml()), "PLUGINS": list(facts.cfg.PLUGINS)}
    return ModelWeights(state, sections, facts.run.folder.resolve().name, format="mim")


def _preparation(facts: Facts) -> Preparation:
    values = facts.cfg.values()
    share = values.get("EVALUATE", {}).get("crop_pct", 1.0)
    return Preparation(share, values.get("AUGMENT", {}).get("interpolation", "bicubic"))


@torch.no_grad()
def _compare(encoder: Encoder, folder: Path, obstacle: str) -> list[str]:
    """Lines on how the folder answers. Raises ValueError where features differ from those of the run."""
    image = encoder.image
    generator = torch.Generator().manual_seed(0)
    img_BCHW = torch.randn(2, image.channels, image.height, image.width, generator=generator)
    features = encoder(img_BCHW)
    again = load_encoder(folder)(img_BCHW)
    if not torch.equal(features.tokens_BND, again.tokens_BND):
        raise ValueError(f"{folder.name}: its features differ from those of the run, so nothing was written")
    lines = ["  as load_encoder reads it: features equal to the bit"]
    if obstacle:
        return [*lines, f"  not for timm: {obstacle}"]
    model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    ours, theirs = features.tokens_BND, _tokens(model.forward_features(img_BCHW), features.tokens_BND)
    difference = ((ours - theirs).abs().max() / ours.abs().max()).item()
    if not difference <= TOLERANCE:  # so that NaN is refused
        raise ValueError(f"{folder.name}: timm's features differ from those of the run by {difference:.1e}")
    return [*lines, f"  as timm reads it: largest difference {difference:.1e} of the largest feature"]


def _tokens(features: Tensor, like_BND: Tensor) -> Tensor:
    """The patch tokens of timm's features: a sequence behind prefix tokens, or a map with channels first or last."""
    if features.ndim == 4:
        first = features.shape[1] == like_BND.shape[2] and features.shape[3] != like_BND.shape[2]
        features = features.flatten(2).transpose(1, 2) if first else features.flatten(1, 2)
    return features[:, -like_BND.shape[1] :]


def _write_card(facts: Facts, folder: Path, place: Place, request: Request) -> None:
    curves = draw_curves(facts.run.rows, folder / CURVES)
    picture = facts.picture()
    if picture is not None:
        source, name = picture
        write_atomically(folder / name, lambda file: file.write(source.read_bytes()))
    write_text(folder / SETTINGS, HEADER + _shared_settings(facts.cfg))
    figures = figures_of(facts.run.folder, request.runs, facts.dataset)
    text = card_text(facts, figures, place, request.license_name, curves, picture[1] if picture else "")
    write_text(folder / CARD, text)


def _shared_settings(cfg: Config) -> str:
    """The config of a run without the folders of its machine."""
    return yaml.safe_dump(_without_folders(yaml.safe_load(cfg.to_yaml())), sort_keys=False, default_flow_style=None)


def _without_folders(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_folders(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_folders(each) for each in value]
    return PurePath(value).name if is_local(value) else value
