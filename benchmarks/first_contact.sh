#!/usr/bin/env bash
# The first minutes on a new GPU, the most valuable first; each step has its own time limit:
#   benchmarks/first_contact.sh first     8 minutes: GPU tests, the large recipes against transformers, attention
#   benchmarks/first_contact.sh second    5 minutes: CIFAR-10, FSDP2, the loader, larger batches
#   benchmarks/first_contact.sh --help    more options
# PYTHON: the interpreter. OUT: the folder of results. WHEELS: a folder of wheels of what is not installed.
# DATA: CIFAR-10, as a folder, a packed folder or a zip. TINY=1: every step at a tiny size, on a CPU too.
set -eu
cd "$(dirname "$0")/.."
exec "${PYTHON:-python3}" benchmarks/first_contact.py "$@"
