"""OpenMP waiting: how idle threads should wait, measured on a training step of ViT-T.

  python benchmarks/omp_wait.py [--rounds 5] [--seconds 4] [--threads 2] [--busy 2] [--batch 32]

PyTorch splits each operation over threads of OpenMP, which wait between two operations: they spin, which is fast on
cores of their own and slow beside other processes, or they sleep. GOMP_SPINCOUNT sets how often a thread of libgomp
looks before it sleeps. Each setting trains in a process of its own. They take turns, first on quiet cores, then beside
busy processes, so that ratios hold while the machine changes. mim.cli.WAITING holds what the commands use.
"""

import argparse
import os
import subprocess
import sys
import time
from statistics import median

DEFAULT = "default"
SETTINGS = {
    DEFAULT: {},
    "spin 100000": {"GOMP_SPINCOUNT": "100000"},
    "spin 10000": {"GOMP_SPINCOUNT": "10000"},
    "spin 1000": {"GOMP_SPINCOUNT": "1000"},
    "spin 100": {"GOMP_SPINCOUNT": "100"},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
}
CASES = ("quiet", "busy")
BUSY = "import os; parent = os.getppid()\nwhile os.getppid() == parent: pass"  # it ends with the one that measures


def train(threads: int, batch: int) -> None:
    """The process of one setting: for each line on stdin, a number of seconds, it trains and prints images/s."""
    import torch

    from mim import build_model, load_config

    torch.set_num_threads(threads)
    model = build_model(load_config("cifar10/mae_vit_tiny", ["ENCODER.depth", "12"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    img_BCHW = torch.randn(batch, 3, 32, 32)

    def step() -> None:
        model(img_BCHW, model.sample_mask(img_BCHW)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    print("ready", flush=True)
    for line in sys.stdin:
        step()  # the threads wake up
        steps, start = 0, time.perf_counter()
        while time.perf_counter() - start < float(line):
            step()
            steps += 1
        print(steps * batch / (time.perf_counter() - start), flush=True)


def start(setting: dict[str, str], args: argparse.Namespace) -> subprocess.Popen[str]:
    """The process of a setting, ready to train."""
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    words = [sys.executable, __file__, "--train", "--threads", str(args.threads), "--batch", str(args.batch)]
    process = subprocess.Popen(
        words, env=environment | setting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        sys.exit("error: a training process ended, see above")
    return process


def images_per_s(process: subprocess.Popen[str], seconds: float) -> float:
    """Lets a process train for so many seconds."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(f"{seconds}\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def measure(processes: dict[str, subprocess.Popen[str]], args: argparse.Namespace) -> dict[str, dict[str, list[float]]]:
    """Images/s by case and setting, a value a round."""
    speeds: dict[str, dict[str, list[float]]] = {case: {name: [] for name in processes} for case in CASES}
    for number in range(args.rounds):
        for case in CASES:
            busy = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(args.busy * (case == "busy"))]
            try:
                for name, process in processes.items():
                    speeds[case][name].append(images_per_s(process, args.seconds))
            finally:
                for process in busy:
                    process.kill()
                    process.wait()
        print(f"round {number + 1} of {args.rounds}", file=sys.stderr, flush=True)
    return speeds


def main() -> None:
    """Prints images/s of each setting, and its ratio to the default by round."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="default: %(default)s")
    parser.add_argument("--seconds", type=float, default=4, help="of a setting in a round; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of each training process; default: %(default)s")
    parser.add_argument("--busy", type=int, default=2, help="other processes that compute; default: %(default)s")
    parser.add_argument("--batch", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.train:
        train(args.threads, args.batch)
        return
    processes = {name: start(setting, args) for name, setting in SETTINGS.items()}
    try:
        speeds = measure(processes, args)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
    for case in CASES:
        others = f"beside {args.busy} busy processes" if case == "busy" else "on quiet cores"
        print(f"\n{others}, {args.threads} threads, batch {args.batch}, fp32: median of {args.rounds} rounds")
        print(f"  {'setting':12} {'images/s':>9} {'/ default':>10}   (lowest to highest by round)")
        for name, values in speeds[case].items():
            ratios = [value / base for value, base in zip(values, speeds[case][DEFAULT], strict=True)]
            spread = f"({min(ratios):.2f} to {max(ratios):.2f})"
            print(f"  {name:12} {median(values):9.1f} {median(ratios):10.2f}   {spread}")


if __name__ == "__main__":
    main()
