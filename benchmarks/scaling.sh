#!/usr/bin/env bash
# MAE ViT-H under DDP and FSDP2 on this machine's first GPU, with and without activation
# checkpointing, each in its own process:
#   benchmarks/scaling.sh [KEY VALUE ...]
# torchrun starts one process, so that the model is really wrapped. Some runs are without torchrun.
# Needs no network and no images. Results are added to benchmarks/<config>_<hardware>_<day>.md.
# PYTHON: the interpreter; CONFIG: the recipe; BATCHES: micro-batches; those too large for the memory are skipped.
set -u
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
config=${CONFIG:-configs/mae/vit_huge.yaml}
read -ra batches <<< "${BATCHES:-64 128 256}"
failed=0

measure() {  # START... -- KEY VALUE...
    local start=()
    while [ "$1" != -- ]; do start+=("$1"); shift; done
    shift
    "${start[@]}" tools/benchmark.py --config "$config" --batch-sizes "${batches[@]}" "$@" "${keys[@]}" \
        || { echo "failed: ${start[*]} $*" >&2; failed=1; }
}

keys=("$@")
for recomputed in false true; do
    measure "$python" -- TRAIN.activation_checkpointing "$recomputed"
    for strategy in ddp fsdp; do
        measure "$python" -m torch.distributed.run --standalone --nproc_per_node 1 -- \
            DISTRIBUTED.strategy "$strategy" TRAIN.activation_checkpointing "$recomputed"
    done
done
exit "$failed"
