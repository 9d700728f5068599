"""Protocols: probes and fine-tunings under one recipe, whatever they started from, make one column."""

import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mim.lab.comparison.formatting import ABSENT, spread, value_text
from mim.lab.comparison.groups import Group
from mim.lab.comparison.provenance import Transfer
from mim.lab.comparison.recipes import STATISTICS, as_identity, counted, differing, in_words
from mim.lab.comparison.studies import PRETRAINING, Studies

UNTOLD = ("INIT.", "ENCODER.", "DATA.batch_size", *STATISTICS)  # of the start; told of elsewhere
OF_THE_START = (*UNTOLD, "OPTIMIZER.layer_decay", "LABELS.seed")
TITLES = {"linear_probe": "linear probe", "finetune": "fine-tuning"}
Seeds = tuple[int, int]  # of the pretraining, and of the transfer
Member = tuple[Group, Transfer]


@dataclass(slots=True)
class Protocol:
    """One way to judge pretrainings. settings: those that decide it; transfers: by name of the group, then by seeds."""

    title: str
    task: str
    settings: dict[str, Any]
    transfers: dict[str, dict[Seeds, Transfer]] = field(default_factory=dict)

    def members(self) -> Iterator[tuple[str, Transfer]]:
        """Every transfer with the name of its group."""
        for name, by_seeds in self.transfers.items():
            for transfer in by_seeds.values():
                yield name, transfer

    def note(self) -> str:
        """What is not equal among its transfers and belongs to their start; empty where there is nothing."""
        own = {name: counted(transfer.run) for name, transfer in reversed(list(self.members()))}
        own = {name: own[name] for name in self.transfers}
        first = next(iter(own.values()))
        keys = dict.fromkeys(key for other in own.values() for key in differing(first, other))
        shown = [key for key in keys if not key.startswith(UNTOLD)]
        values = {key: {name: value_text(settings.get(key, ABSENT)) for name, settings in own.items()} for key in shown}
        return "; ".join(f"{key} is {spread(by_name)}" for key, by_name in values.items())


def protocols_of(groups: Sequence[Group], studies: Studies, left_out: list[tuple[str, str]]) -> tuple[Protocol, ...]:
    """The protocols, a study's in its order, others probes first. Two transfers of one start, protocol and seed are one
    too many: the second is left out by name.

    Transfers are of one protocol where they stand in one folder of a study, else where their configs are equal but for
    what belongs to the start. What varies for one and the same start does not belong to it.
    """
    members: dict[bool, list[Member]] = {True: [], False: []}  # of a study, or not
    for group in groups:
        for transfer in group.transfers:
            members[_in_study(transfer, studies)].append((group, transfer))
    found, loose_of = _of_studies(members[True], studies, left_out)
    classes: dict[Hashable, list[Member]] = {}
    for group, transfer in members[False]:
        classes.setdefault(_loose(transfer), []).append((group, transfer))
    others: dict[Hashable, Protocol] = {}
    for loose, same in classes.items():
        varying = _varying(same)
        homes = [protocol for protocol, identities in zip(found, loose_of, strict=True) if loose in identities]
        for group, transfer in same:
            if len(homes) == 1 and not varying:
                _add(homes[0], group, transfer, left_out)
                continue
            settings = _settings(transfer, varying)
            protocol = others.setdefault(as_identity(settings), Protocol("", transfer.run.task, settings))
            _add(protocol, group, transfer, left_out)
    _name(list(others.values()))
    found += others.values()
    titles = [protocol.title for protocol in found]
    for place, protocol in enumerate(found):
        if protocol.title in titles[:place]:
            protocol.title += f" #{place + 1}"
    return tuple(sorted(found, key=partial(_order, studies)))


def _in_study(transfer: Transfer, studies: Studies) -> bool:
    """Whether a folder of a study says what it is: the start in its name is the one that it came from."""
    place = studies.place(transfer.run.folder)
    if place is None or transfer.origin is None:
        return place is not None
    origin = studies.place(transfer.origin.folder)
    return origin is not None and (origin.root, origin.start_name) == (place.root, place.start_name)


def _order(studies: Studies, protocol: Protocol) -> tuple[int, bool]:
    places = [studies.place(transfer.run.folder) for _, transfer in protocol.members()]
    ranks = [place.order[1] for place in places if place is not None]
    return min(ranks, default=sys.maxsize), protocol.task != "linear_probe"


def _of_studies(
    members: Sequence[Member], studies: Studies, left_out: list[tuple[str, str]]
) -> tuple[list[Protocol], list[set[Hashable]]]:
    """A protocol for each folder of a study, and for folders of one name in several studies where configs agree; with
    the configs that are in it.
    """
    folders: dict[tuple[str, str, Path], list[Member]] = {}
    for group, transfer in members:
        place = studies.place(transfer.run.folder)
        assert place is not None
        task = transfer.run.task
        title = _title_of(task) if place.protocol == PRETRAINING else place.protocol_name
        folders.setdefault((title, task, place.root), []).append((group, transfer))
    found: list[Protocol] = []
    identities: list[set[Hashable]] = []
    for (title, task, _), same in folders.items():
        own: set[Hashable] = {_loose(transfer) for _, transfer in same}
        for protocol, theirs in zip(found, identities, strict=True):
            if (protocol.title, protocol.task) == (title, task) and theirs & own:
                theirs |= own
                break
        else:
            protocol = Protocol(title, task, _settings(same[0][1], ()))
            found.append(protocol)
            identities.append(own)
        for group, transfer in same:
            _add(protocol, group, transfer, left_out)
    return found, identities


def _settings(transfer: Transfer, varying: Sequence[str]) -> dict[str, Any]:
    """Those that decide the protocol: all but what belongs to the start and does not vary for one."""
    settings = counted(transfer.run)
    return {key: value for key, value in settings.items() if key in varying or not key.startswith(OF_THE_START)}


def _loose(transfer: Transfer) -> Hashable:
    return as_identity(_settings(transfer, ()))


def _varying(members: Sequence[Member]) -> list[str]:
    """Keys in which transfers differ that share start and seeds."""
    shared: dict[Hashable, list[Transfer]] = {}
    for group, transfer in members:
        shared.setdefault((group.name, transfer.seeds), []).append(transfer)
    keys: dict[str, None] = {}
    for same in shared.values():
        first = counted(same[0].run)
        for other in same[1:]:
            keys.update(dict.fromkeys(key for key in differing(first, counted(other.run)) if key != "INIT.checkpoint"))
    return list(keys)


def _add(protocol: Protocol, group: Group, transfer: Transfer, left_out: list[tuple[str, str]]) -> None:
    taken = protocol.transfers.setdefault(group.name, {})
    before = taken.setdefault(transfer.seeds, transfer)
    if before is not transfer:
        left_out.append((transfer.run.shown, f"of the same start, protocol and seed as {before.run.shown}"))


def _name(protocols: Sequence[Protocol]) -> None:
    """Titles from the task, and from what tells several of one task apart."""
    for task in dict.fromkeys(protocol.task for protocol in protocols):
        same = [protocol for protocol in protocols if protocol.task == task]
        first = same[0].settings
        keys = list(dict.fromkeys(key for other in same[1:] for key in differing(first, other.settings)))
        for protocol in same:
            told = in_words(protocol.settings, keys, most=3)
            protocol.title = f"{_title_of(task)}{', ' if told else ''}{told}"


def _title_of(task: str) -> str:
    return TITLES.get(task, task.replace("_", " "))
