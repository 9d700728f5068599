"""Baselines: probes and fine-tunings of random weights that lie beside those of compared runs."""

from collections.abc import Hashable
from pathlib import Path

from mim.config import read_mapping
from mim.engine.run_folder import RunFolder
from mim.lab.comparison.runs.protocols import protocol_identity
from mim.lab.comparison.runs.provenance import RunCollection, Transfer, start_of
from mim.lab.comparison.runs.recipes import recipe_of
from mim.lab.comparison.runs.run import Run, read_environment, read_run
from mim.lab.comparison.runs.studies import Studies


def add_baselines(collection: RunCollection, studies: Studies) -> None:
    """Adds those that lie in one folder with a transfer and have its protocol, unless one is compared already."""
    transfers = [each for each in collection.transfers if each.origin is not None]
    places = {_place(each, studies) for each in transfers} | {_protocol_and_encoder(each) for each in transfers}
    for each in collection.transfers:
        if each.origin is None and start_of(each.run.settings, each.run.environment) is None:
            places -= {_place(each, studies), _protocol_and_encoder(each)}
    known = {run.folder for run in (*collection.pretraining, *(each.run for each in collection.transfers))}
    for parent in dict.fromkeys(each.run.folder.parent for each in transfers):
        for folder in sorted(parent.iterdir(), key=studies.sort_key):
            run = _random_run(folder) if folder not in known else None
            if run is not None:
                transfer = Transfer(run, None)
                if {_place(transfer, studies), _protocol_and_encoder(transfer)} & places:
                    collection.transfers.append(transfer)


def _random_run(folder: Path) -> Run | None:
    """The run in a folder, where it is a probe or fine-tuning of random weights."""
    try:
        sections = read_mapping(RunFolder(folder).config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    init = sections.get("INIT")
    settings = {"INIT.checkpoint": init.get("checkpoint")} if isinstance(init, dict) else {}
    if sections.get("TASK") == "pretrain" or start_of(settings, read_environment(folder) or {}) is not None:
        return None
    return read_run(folder)[0]


def _place(transfer: Transfer, studies: Studies) -> Hashable:
    """The folder of a study that a transfer lies in; elsewhere what no other transfer has."""
    position = studies.position(transfer.run.folder)
    return transfer.run.folder if position is None else (position.root, position.protocol)


def _protocol_and_encoder(transfer: Transfer) -> Hashable:
    encoder = [(key, repr(value)) for key, value in recipe_of(transfer.run).items() if key.startswith("ENCODER.")]
    return protocol_identity(transfer), tuple(sorted(encoder))
