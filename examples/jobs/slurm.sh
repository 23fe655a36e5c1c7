#!/usr/bin/env bash
# Train a hypernetwork on all GPUs of one or several nodes, then edit a big base with it, under Slurm.
#
#   sbatch --export=ALL,MODEL=OWNER/NAME,EDITS=zsre.json examples/jobs/slurm.sh
#   DRY_RUN=1 MODEL=OWNER/NAME EDITS=zsre.json bash examples/jobs/slurm.sh    # prints the commands
#
# `sbatch --nodes=4` takes four nodes, which must see the same folders. A job that is cut off goes on where it stopped when it
# is submitted again with the same OUT.
#SBATCH --job-name=hf-edit
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=16
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

: "${MODEL:?the base: a Hub id or a directory}"
: "${EDITS:?a file of edits to train on}"
FACTS=${FACTS:-}                 # edits to teach afterwards, JSONL
FORMAT=${FORMAT:-zsre}           # layout of $EDITS
OUT=${OUT:-hf-edit-${SLURM_JOB_ID:-local}}
GPUS=${SLURM_GPUS_ON_NODE:-4}
NODES=${SLURM_JOB_NUM_NODES:-1}
HEAD=${HEAD:-localhost}          # where the processes meet
if ((NODES > 1)); then HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1); fi

run() {
    if [[ ${DRY_RUN:-0} == 1 ]]; then printf '%q ' "$@"; echo; else "$@"; fi
}

# one process for each GPU of every node; only on its node is it known which one that is
launch='exec accelerate launch --num_processes "$0" --num_machines "$1" --machine_rank "$SLURM_NODEID" \
    --main_process_ip "$2" --main_process_port 29500 --no_python "${@:3}"'

shared() {
    run srun --nodes "$NODES" --ntasks-per-node 1 bash -c "$launch" "$((NODES * GPUS))" "$NODES" "$HEAD" "$@"
}

# every process holds the base, and shares the statistics and the work on every batch
shared hf-edit train --model "$MODEL" --edits "$EDITS" --edits-format "$FORMAT" --format plain --dtype bfloat16 \
    --out "$OUT/net"

# --device auto spreads a base that is too big for one GPU over all of them
if [[ -n $FACTS ]]; then
    run hf-edit apply --model "$MODEL" --edits "$FACTS" --method emsedit --format plain --hypernet "$OUT/net" \
        --device auto --dtype bfloat16 --out "$OUT/pack"
    run hf-edit verify "$OUT/pack"
fi
