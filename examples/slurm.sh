#!/bin/bash
# A training on one or more machines of a Slurm cluster, as long as it takes:
#
#   sbatch --nodes 2 --gpus-per-node 8 examples/slurm.sh runs/cat --config run.yaml
#
# The first argument is the run's folder, which all machines must see; the others are settings of train_sdxl_lora.py.
# Before the time is up (USR1) or the job is preempted (TERM) the run is asked to stop: it saves a checkpoint. The job
# then puts itself back into the queue and goes on from there, with the same command.
#SBATCH --job-name=sdxl-lora
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

run=${1:?usage: sbatch examples/slurm.sh RUN_FOLDER SETTINGS...}
shift
mkdir -p "$run"

asked=
trap 'asked=yes' USR1 TERM

nodes=${SLURM_NNODES:-1}
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# One launcher on each machine, which starts a process for each GPU. USR1 to all of the job would end a launcher.
# After a process dies, all start again from the newest checkpoint, up to three times.
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 bash -c 'trap "" USR1
    exec accelerate launch --config_file accelerate_configs/multi_node.yaml --max_restarts 3 \
    --num_machines "$1" --num_processes "$2" --main_process_ip "$3" --main_process_port "$4" \
    --machine_rank "$SLURM_NODEID" train_sdxl_lora.py --output_dir "${@:5}"' launch \
    "$nodes" $((nodes * ${SLURM_GPUS_ON_NODE:-1})) "$head_node" $((20000 + ${SLURM_JOB_ID:-0} % 10000)) "$run" "$@" &
launched=$!

while kill -0 $launched 2>/dev/null; do
    if [ -n "$asked" ]; then touch "$run/stop"; fi # again and again: a run that only starts removes old ones
    sleep 1 &
    wait $!
done
wait $launched
code=$?

if [ -n "$asked" ] && grep -q '"state": "stopped"' "$run/status.json"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $code
