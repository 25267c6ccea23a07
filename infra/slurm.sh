#!/usr/bin/env bash
# A Ray cluster inside a Slurm allocation, and a sweep on it. Submit it again, with the same arguments, and the run goes on:
#
#   sbatch infra/slurm.sh launch sweeps/temperature.toml --into /shared/runs/temperature
#   sbatch --nodes 4 --gpus-per-node 8 --time 12:00:00 infra/slurm.sh resume /shared/runs/temperature
#
# What follows the script is what `orchestrator` is given. The run lies where all nodes see it: a shared folder, then with
# ORCHESTRATOR_LEDGER in PostgreSQL, or a bucket. Export these, MLFLOW_TRACKING_URI and keys before you submit.
#SBATCH --job-name=orchestrator
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=04:00:00
#SBATCH --output=orchestrator-%j.log
# Ninety seconds before its time is over, or when it is pre-empted, the script gets a signal, trials write checkpoints, and the
# job goes back into the queue, where it continues the run.
#SBATCH --signal=B:TERM@90
#SBATCH --requeue
set -euo pipefail

if (($# == 0)); then
    echo "usage: sbatch $0 launch SWEEP.toml --into PLACE    or: resume PLACE" >&2
    exit 2
fi
: "${SLURM_JOB_ID:?is not set: submit this with sbatch}"
: "${SLURM_JOB_NODELIST:?is not set: submit this with sbatch}"

# The environment in which this package is installed; the same path on every node.
if [[ -n ${ORCHESTRATOR_VENV:-} ]]; then
    PATH=$ORCHESTRATOR_VENV/bin:$PATH
fi

# A token of this job's own. It travels in the environment of the steps, which only their user can read.
umask 077
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0

# Jobs that share a node must not meet: ports of their own, and folders.
port=$((20000 + 2 * (SLURM_JOB_ID % 10000)))
export RAY_TMPDIR=${RAY_TMPDIR:-/tmp/ray-$SLURM_JOB_ID}

mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# The address by which the other nodes reach the first one; its loopback is of no use to them.
address=$(srun --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" hostname --ip-address | tr ' ' '\n' |
    grep -v -e '^127\.' -e ':' | head -n 1) || address=
address=${ORCHESTRATOR_HEAD_IP:-$address}
if [[ -z $address ]]; then
    echo "error: ${hosts[0]} gives no address that other nodes reach; export ORCHESTRATOR_HEAD_IP and submit again" >&2
    exit 4
fi

steps=()
node() { # node HOST ARGUMENTS OF `ray start`...
    # --overlap: the driver's step and the node's share the first host.
    srun --nodes=1 --ntasks=1 --nodelist="$1" --overlap --kill-on-bad-exit=0 \
        ray start --block --num-cpus="${SLURM_CPUS_PER_TASK:-1}" \
        --num-gpus="${SLURM_GPUS_ON_NODE:-0}" --disable-usage-stats "${@:2}" &
    steps+=($!)
}

driver=
# shellcheck disable=SC2317  # called by the trap
finish() {
    for step in "${steps[@]}"; do
        kill "$step" 2>/dev/null || true
    done
    wait || true
    rm -rf "$RAY_TMPDIR"
}
told=
# shellcheck disable=SC2317
stop() { # Slurm has told us: the driver checkpoints and leaves with 130
    told=yes
    [[ -z $driver ]] || kill -TERM "$driver" 2>/dev/null || true
}
trap finish EXIT
trap stop TERM

node "${hosts[0]}" --head --node-ip-address="$address" --port="$port" --ray-client-server-port=$((port + 1)) \
    --include-dashboard=false
export RAY_ADDRESS=$address:$port
for _ in $(seq 120); do
    ray health-check --address "$RAY_ADDRESS" >/dev/null 2>&1 && break
    kill -0 "${steps[0]}" 2>/dev/null || { echo "error: Ray's head ended; see above" >&2; exit 4; }
    sleep 1
done
for host in "${hosts[@]:1}"; do
    node "$host" --address="$RAY_ADDRESS"
done
# Sessions follow nodes as they come, so the driver need not wait for all; one with room for a trial is enough.
orchestrator "$@" &
driver=$!
code=0
wait "$driver" || code=$?
if [[ -n $told ]]; then
    wait "$driver" || code=$?  # the first wait was ended by the signal
    scontrol requeue "$SLURM_JOB_ID" || echo "note: submit the same command again to continue" >&2
fi
exit "$code"
