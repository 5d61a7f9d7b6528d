#!/bin/bash
# Training on a SLURM cluster, on one node or many, for as long as it takes:
#   sbatch slurm_train.sh RUN CONFIG.yaml [pretrain|finetune]
# Two minutes before its time is over, or when it is preempted, the job writes a checkpoint, ends
# and queues itself again, until the run is complete. Any number of GPUs can go on with it.
#SBATCH --job-name=muvit
#SBATCH --nodes=2 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8
#SBATCH --time=4:00:00 --signal=USR1@120 --requeue --open-mode=append
set -u
run=$1 config=$2 verb=${3:-pretrain}

# One process for each GPU; the first node's first process is where they meet.
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
export RUN=$run CONFIG=$config VERB=$verb
srun --kill-on-bad-exit=1 bash -c '
  export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS
  if [ -f "$RUN/run.json" ]; then
    exec python -m napari_muvit.train resume "$RUN"
  fi
  exec python -m napari_muvit.train "$VERB" --config "$CONFIG" --output "$RUN"
'

# A run that was stopped, or whose node died, is queued again; one that failed needs you.
state=$(python -c 'import sys; from napari_muvit.api import RunFolder
print(RunFolder(sys.argv[1]).status().state)' "$run")
echo "$run: $state"
case $state in
  stopped|interrupted) scontrol requeue "$SLURM_JOB_ID" ;;
  failed) exit 1 ;;
esac
