#!/usr/bin/env bash
# Every recipe of docs/performance.md on this machine's first GPU, each in its own process:
#   benchmarks/gpu.sh [KEY VALUE ...]
# Needs no network and no images. Results are added to benchmarks/<config>_<hardware>_<day>.md.
# PYTHON: the interpreter; BATCHES: batches of the base models; LARGE: of ViT-L.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
read -ra base <<< "${BATCHES:-128 256 512}"
read -ra large <<< "${LARGE:-64 128 256}"
failed=0

measure() {  # CONFIG BATCH...; adds the words in `keys`
    local config=$1
    shift
    "$python" tools/benchmark.py --config "configs/$config.yaml" --compile --against transformers --profile \
        --batch-sizes "$@" "${keys[@]}" || { echo "failed: $config" >&2; failed=1; }
}

"$python" benchmarks/attention.py || { echo "failed: attention.py" >&2; failed=1; }
keys=("$@")
measure mae/vit_base "${base[@]}"
measure mae/vit_large "${large[@]}"
measure simmim/swin_base_100ep "${base[@]}"
measure simmim/vit_base_800ep "${base[@]}"
exit "$failed"
