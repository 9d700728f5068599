"""Saving: how long a checkpoint stops training, written in the step and in the background, in turns.

  python benchmarks/saving.py RECIPE [KEY VALUE ...] [--rounds 6] [--steps 8] [--threads 2] [--folder FOLDER]

The trainer of a recipe takes steps on random images on this machine's device. A round saves once each way, in an order
that changes, into a folder on the disk in question. After a save come so many steps, which share the processor with a
write in the background, and then the wait for its end. The first save each way is not counted: memory is got there.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from targets import spread

from mim import load_config
from mim.engine.distributed.world import device_of
from mim.engine.run_folder import RunFolder
from mim.engine.saver import Saver
from mim.engine.trackers.metrics import Stopwatch
from mim.lab.dryrun.measure import dry_trainer
from mim.lab.dryrun.task import dry_task
from mim.lab.dryrun.trainer import DryTrainer


class Times(NamedTuple):
    """Seconds around a save."""

    stop: float  # that training waits for it
    whole: float  # of it and the steps behind it, until the file is on the disk


class Side:
    """A way to save the state of a trainer."""

    def __init__(self, trainer: DryTrainer, asynchronous: bool, folder: Path):
        self.trainer, self.asynchronous, self.saves = trainer, asynchronous, 0
        self.run = RunFolder(folder)
        self.run.checkpoints.mkdir(parents=True)
        settings = replace(trainer.settings.checkpoint, asynchronous=asynchronous, keep=1)
        self.saver = Saver(self.run, settings, trainer.world, Stopwatch(), self.content)

    def content(self) -> dict:
        """The tensors of a checkpoint, which take all the time."""
        return {"step": self.saves, **self.trainer.train_state.state(offload=not self.asynchronous)}

    def save(self, steps: int) -> Times:
        """Saves once, with steps behind it."""
        self.saves += 1
        begin = time.perf_counter()
        self.saver.save(self.saves)
        stop = time.perf_counter() - begin
        for _ in range(steps):
            self.trainer.take_step()
        self.saver.wait()
        return Times(stop, time.perf_counter() - begin)


def steps_alone(trainer: DryTrainer, steps: int) -> float:
    """Seconds of so many steps without a save."""
    begin = time.perf_counter()
    for _ in range(steps):
        trainer.take_step()
    return time.perf_counter() - begin


def main() -> None:
    """Prints the size of a checkpoint, and for each way the time that training stops and that it loses in all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", metavar="RECIPE")
    parser.add_argument("keys", nargs="*", metavar="KEY VALUE")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="on the disk that is written; default: that of temporary files")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dry = dry_task(load_config(args.recipe, dict(zip(args.keys[::2], args.keys[1::2], strict=True))))
    trainer = dry_trainer(dry, dry.plan(1), device_of(dry.cfg.DISTRIBUTED), lambda phase: None)
    with TemporaryDirectory(dir=args.folder) as folder:
        ways = {"in the step": False, "in the background": True}
        sides = {way: Side(trainer, ways[way], Path(folder) / way) for way in ways}
        steps_alone(trainer, 2)  # the first makes the moments
        for side in sides.values():
            side.save(0)
        times: dict[str, list[Times]] = {way: [] for way in ways}
        alone = []
        for number in range(args.rounds):
            alone.append(steps_alone(trainer, args.steps))
            for way in sorted(ways, reverse=bool(number % 2)):
                times[way].append(sides[way].save(args.steps))
        size = (sides["in the step"].run.checkpoints / f"step-{args.rounds + 1}.pt").stat().st_size
    print(f"a checkpoint of {size / 1e6:,.0f} MB; {args.steps} steps alone take {spread(alone, '.2f')} s")
    for way, each in times.items():
        lost = [time.whole - steps for time, steps in zip(each, alone, strict=True)]
        print(f"{way:<18} training stops for {spread([t.stop for t in each], '.3f')} s, {spread(lost, '.2f')} s in all")


if __name__ == "__main__":
    main()
