"""Protocols: probes and fine-tunings under one recipe, whatever they started from, make one column."""

import re
import sys
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mim.lab.comparison.formatting import ABSENT, by_value, join_names, settings_text, value_text
from mim.lab.comparison.runs.groups import Group
from mim.lab.comparison.runs.provenance import Transfer
from mim.lab.comparison.runs.recipes import STATISTICS, differing_keys, identity_of, recipe_of
from mim.lab.comparison.runs.studies import Studies
from mim.lab.layout import PRETRAINING

SHOWN_ELSEWHERE = ("INIT.", "ENCODER.", "DATA.batch_size", *STATISTICS)  # keys of the start
OF_THE_START = (*SHOWN_ELSEWHERE, "OPTIMIZER.layer_decay", "LABELS.seed")
NAME_OF_READOUT = re.compile(r"READOUT\.(\d+\.)?name")
Seeds = tuple[int, int]  # of the pretraining, and of the transfer
Member = tuple[Group, Transfer]
LeftOut = list[tuple[str, str]]


@dataclass(slots=True)
class Protocol:
    """One way to evaluate pretrainings."""

    title: str
    task: str
    settings: dict[str, Any]  # the keys that decide it
    transfers: dict[str, dict[Seeds, Transfer]] = field(default_factory=dict)  # by name of the group, then by seeds

    def members(self) -> Iterator[tuple[str, Transfer]]:
        """Every transfer with the name of its group."""
        for name, by_seeds in self.transfers.items():
            for transfer in by_seeds.values():
                yield name, transfer

    def add(self, group: Group, transfer: Transfer, left_out: LeftOut) -> None:
        """Adds a transfer. A second one of the same start and seeds is left out."""
        earlier = self.transfers.setdefault(group.name, {}).setdefault(transfer.seeds, transfer)
        if earlier is not transfer:
            left_out.append((transfer.run.path, f"of the same start, protocol and seed as {earlier.run.path}"))

    def note(self) -> str:
        """What differs among its transfers because it belongs to their start; empty where nothing does."""
        recipes = {name: recipe_of(next(iter(by_seeds.values())).run) for name, by_seeds in self.transfers.items()}
        keys = [key for key in differing_keys(recipes.values()) if not key.startswith(SHOWN_ELSEWHERE)]
        values = {key: {name: value_text(recipe.get(key, ABSENT)) for name, recipe in recipes.items()} for key in keys}
        return "; ".join(f"{key} is {by_value(by_name)}" for key, by_name in values.items())


def protocols_of(groups: Sequence[Group], studies: Studies, left_out: LeftOut) -> tuple[Protocol, ...]:
    """The protocols: those of a study in its order, others with probes first.

    Transfers have one protocol where they stand in one folder of a study, or where their configs agree beside what
    belongs to the start. What varies for one start does not belong to it.
    """
    members: dict[bool, list[Member]] = {True: [], False: []}  # of a study, or not
    for group in groups:
        for transfer in group.transfers:
            members[_in_study(transfer, studies)].append((group, transfer))
    of_studies = _of_studies(members[True], studies, left_out)
    classes: dict[Hashable, list[Member]] = {}
    for group, transfer in members[False]:
        classes.setdefault(protocol_identity(transfer), []).append((group, transfer))
    others: dict[Hashable, Protocol] = {}
    for identity, same in classes.items():
        varying = _varying(same)
        homes = [protocol for protocol, identities in of_studies if identity in identities]
        for group, transfer in same:
            if len(homes) == 1 and not varying:
                homes[0].add(group, transfer, left_out)
                continue
            settings = _settings(transfer, varying)
            protocol = others.setdefault(identity_of(settings), Protocol("", transfer.run.task, settings))
            protocol.add(group, transfer, left_out)
    _set_titles(list(others.values()))
    protocols = [*(protocol for protocol, _ in of_studies), *others.values()]
    titles = [protocol.title for protocol in protocols]
    for index, title in enumerate(titles):
        if title in titles[:index]:
            protocols[index].title += f" #{index + 1}"
    return tuple(sorted(protocols, key=partial(_order, studies)))


def _in_study(transfer: Transfer, studies: Studies) -> bool:
    """Whether the folder of a study says what a transfer is: the start in its name is the one that it came from."""
    position = studies.position(transfer.run.folder)
    if position is None or transfer.origin is None:
        return position is not None
    origin = studies.position(transfer.origin.folder)
    return origin is not None and (origin.root, origin.start_name) == (position.root, position.start_name)


def _order(studies: Studies, protocol: Protocol) -> tuple[int, bool]:
    positions = [studies.position(transfer.run.folder) for _, transfer in protocol.members()]
    ranks = [position.order[1] for position in positions if position is not None]
    return min(ranks, default=sys.maxsize), protocol.task != "probe"


def _of_studies(members: Sequence[Member], studies: Studies, left_out: LeftOut) -> list[tuple[Protocol, set[Hashable]]]:
    """A protocol for each folder, with the identities of its configs. Studies share one where a config agrees."""
    folders: dict[tuple[str, str, Path], list[Member]] = {}
    for group, transfer in members:
        position = studies.position(transfer.run.folder)
        assert position is not None
        task = transfer.run.task
        title = _title_of(task, recipe_of(transfer.run)) if position.protocol == PRETRAINING else position.protocol_name
        folders.setdefault((title, task, position.root), []).append((group, transfer))
    protocols: list[tuple[Protocol, set[Hashable]]] = []
    for (title, task, _), same in folders.items():
        identities: set[Hashable] = {protocol_identity(transfer) for _, transfer in same}
        for protocol, others in protocols:
            if (protocol.title, protocol.task) == (title, task) and others & identities:
                others |= identities
                break
        else:
            protocol = Protocol(title, task, _settings(same[0][1], ()))
            protocols.append((protocol, identities))
        for group, transfer in same:
            protocol.add(group, transfer, left_out)
    return protocols


def _settings(transfer: Transfer, varying: Sequence[str]) -> dict[str, Any]:
    """The keys that decide the protocol: all but what belongs to the start and does not vary for one."""
    recipe = recipe_of(transfer.run)
    return {key: value for key, value in recipe.items() if key in varying or not key.startswith(OF_THE_START)}


def protocol_identity(transfer: Transfer) -> Hashable:
    """What transfers under one protocol share, whatever they started from."""
    return identity_of(_settings(transfer, ()))


def _varying(members: Sequence[Member]) -> list[str]:
    """Keys in which transfers with the same start and seeds differ."""
    shared: dict[Hashable, list[Transfer]] = {}
    for group, transfer in members:
        shared.setdefault((group.name, transfer.seeds), []).append(transfer)
    keys: dict[str, None] = {}
    for same in shared.values():
        keys.update(dict.fromkeys(differing_keys([recipe_of(transfer.run) for transfer in same])))
    return [key for key in keys if key != "INIT.checkpoint"]


def _set_titles(protocols: Sequence[Protocol]) -> None:
    """Titles from the task, and from the keys in which several of one task differ."""
    for task in dict.fromkeys(protocol.task for protocol in protocols):
        same = [protocol for protocol in protocols if protocol.task == task]
        keys = differing_keys([protocol.settings for protocol in same])
        for protocol in same:
            settings = settings_text(protocol.settings, keys, most=3)
            protocol.title = f"{_title_of(task, protocol.settings)}{', ' if settings else ''}{settings}"


def _title_of(task: str, keys: Mapping[str, Any]) -> str:
    """What a protocol is called: fine-tuning, or a probe by its readouts, as `linear probe`."""
    if task == "finetune":
        return "fine-tuning"
    names = [str(value).replace("_", " ") for key, value in keys.items() if NAME_OF_READOUT.fullmatch(key)]
    return f"{join_names(list(dict.fromkeys(names)))} {task}".strip()
