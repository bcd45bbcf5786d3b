#!/usr/bin/env bash
# A suite on the machines of a SLURM allocation: Ray's head on the first, workers on the others, `bench run` beside the
# head. What is given to this script goes to `bench run`:
#
#   sbatch cluster/slurm.sh --suite main --data /shared/data --runs-dir /shared/runs
#
# Folders have to be shared by the machines. When the time limit comes near SLURM sends SIGTERM (--signal below): trials
# write checkpoints and stop, and the same sbatch goes on. VENV names the virtual environment with boltzbench, default
# ./venv.
#SBATCH --job-name=boltzbench
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --gpus-per-task=8
#SBATCH --mem=0
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@900
#SBATCH --output=boltzbench-%j.log
set -euo pipefail

source "${VENV:-venv}/bin/activate"
# ends what a killed trial has started (nnU-Net's experts)
export RAY_kill_child_processes_on_worker_exit_with_raylet_subreaper=true
# a Ray takes code from whoever reaches its port: this one from this job alone
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(od -An -N32 -tx1 /dev/urandom | tr -d ' \n')
export RAY_AUTH_TOKEN

mapfile -t nodes < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
head=${nodes[0]}
# several jobs may share a machine: a port of this job's own
port=$((20000 + SLURM_JOB_ID % 10000))
cpus=(--num-cpus "${SLURM_CPUS_PER_TASK:-1}")
# some versions of srun do not take it over from sbatch, and would bind Ray to a single core
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"

# stops here where the step of process $1 has ended or takes too long: Ray gives up on a node that is slow to begin
begins() {
  if ! kill -0 "$1" 2> /dev/null || ((SECONDS > 600)); then
    echo "error: Ray does not begin on $2: see above, and sbatch again" >&2
    exit 1
  fi
}

srun --nodes=1 --ntasks=1 --nodelist="$head" --overlap ray start --head --port "$port" "${cpus[@]}" --block &
step=$!
until ray health-check --address "$head:$port" 2> /dev/null; do begins "$step" "$head"; sleep 1; done
if ((${#nodes[@]} > 1)); then
  others=$(IFS=,; echo "${nodes[*]:1}")
  count=$((${#nodes[@]} - 1))
  srun --nodes="$count" --ntasks="$count" --nodelist="$others" --overlap \
    ray start --address "$head:$port" "${cpus[@]}" --block &
  step=$!
  until [ "$(ray status --address "$head:$port" 2> /dev/null | grep -c ' node_')" -ge "${#nodes[@]}" ]; do
    begins "$step" "all of $others"
    sleep 1
  done
fi

# in the background: bash passes a signal on only while it waits
bench run "$@" --address "$head:$port" &
bench=$!
trap 'kill -TERM "$bench"' TERM
code=0
wait "$bench" || code=$?
# the wait that a signal ended is over before the suite is
while kill -0 "$bench" 2> /dev/null; do wait "$bench" && code=0 || code=$?; done
exit "$code"
