#!/usr/bin/env bash
# Training steps and the loader on a CPU, each in its own process:
#   benchmarks/cpu.sh [FOLDER]
# FOLDER: train/ and val/, or class folders, of JPEGs. Without it the loader is not measured. Needs no network.
# Results are added to benchmarks/<config>_<hardware>_<day>.md. PYTHON: the interpreter.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
failed=0

measure() {
    "$python" tools/benchmark.py "$@" || { echo "failed: $*" >&2; failed=1; }
}

contenders=(--compile --against transformers transformers-compiled eager --profile)
measure --config configs/mae/vit_base.yaml "${contenders[@]}" DATA.batch_size 16
measure --config configs/simmim/swin_base_100ep.yaml "${contenders[@]}" DATA.batch_size 8
measure --config configs/simmim/vit_base_800ep.yaml "${contenders[@]}" DATA.batch_size 16
if [ $# -gt 0 ]; then
    measure --config configs/mae/vit_base.yaml --data DATA.path "$1" DATA.labels none
fi
exit "$failed"
