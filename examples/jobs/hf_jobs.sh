#!/usr/bin/env bash
# Edit a big base on rented hardware of the Hub, and publish the pack.
#
#   MODEL=OWNER/BASE EDITS=OWNER/EDITS REPO=OWNER/PACK PACKAGE=git+https://... bash examples/jobs/hf_jobs.sh
#   DRY_RUN=1 ...    # the same in front of it prints the command
#
# Needs `hf auth login` and a plan that includes Jobs. EDITS is a dataset repository with a file edits.jsonl.
set -euo pipefail

: "${MODEL:?the base: a Hub id}"
: "${EDITS:?a dataset repository that holds edits.jsonl}"
: "${REPO:?where the pack goes: owner/name}"
: "${PACKAGE:?what pip installs there: the address of the project, or its name once it is released}"
FLAVOR=${FLAVOR:-a100-large}
IMAGE=${IMAGE:-pytorch/pytorch:2.6.0-cuda12.4-cudnn9-runtime}
TIMEOUT=${TIMEOUT:-2h}

# what runs there; the values come in as its arguments
inside='set -euo pipefail
pip install --quiet "$4"
hf download --repo-type dataset "$2" edits.jsonl --local-dir .
hf-edit apply --model "$1" --edits edits.jsonl --device auto --dtype bfloat16 --out pack
hf-edit push pack "$3"'

run() {
    if [[ ${DRY_RUN:-0} == 1 ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}

run hf jobs run --flavor "$FLAVOR" --timeout "$TIMEOUT" --secrets HF_TOKEN \
    "$IMAGE" bash -c "$inside" hf-edit-job "$MODEL" "$EDITS" "$REPO" "$PACKAGE"
