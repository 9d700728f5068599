#!/usr/bin/env bash
# The step and the loader on a CPU, each in a process of its own:
#   benchmarks/cpu.sh [FOLDER]
# FOLDER: train/ and val/, or class folders, of JPEGs for the loader, which is left out without one. Needs no network.
# Results are added to benchmarks/<config>_<hardware>_<day>.md. PYTHON: the interpreter.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
failed=0

measure() {
    "$python" tools/benchmark.py "$@" || { echo "failed: $*" >&2; failed=1; }
}

sides=(--compile --against transformers transformers-compiled eager --profile)
measure --config configs/mae/vit_base.yaml "${sides[@]}" DATA.batch_size 16
measure --config configs/simmim/swin_base_100ep.yaml "${sides[@]}" DATA.batch_size 8
measure --config configs/simmim/vit_base_800ep.yaml "${sides[@]}" DATA.batch_size 16
if [ $# -gt 0 ]; then
    measure --config configs/mae/vit_base.yaml --data DATA.path "$1" DATA.labels none
fi
exit "$failed"
