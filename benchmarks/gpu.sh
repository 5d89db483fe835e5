#!/usr/bin/env bash
# What only a GPU can show, the most telling first, in ten minutes; each result is written as it comes, and one that
# fails stops no other. What the time does not suffice for is named. Then the tests that need a GPU.
#
#     bash benchmarks/gpu.sh OUTPUT_FOLDER [DIFFUSERS_SCRIPT]
#
# SIZE=toy PRECISION=no tries the script itself without a GPU. LIMIT: other seconds than 600.
set -uo pipefail
out=$1
peer=(${2:+--peer "$2" --peer_variant "diffusers, its best flags=--allow_tf32 --dataloader_num_workers 4"})
size=${SIZE:-sdxl}
precision=${PRECISION:-bf16}
limit=${LIMIT:-600}
work=runs/train_speed
common=(--size "$size" --precision "$precision" --output_dir "$out")
graphs=(--variant "ours, no graphs=--cuda_graphs off" --variant "ours, compiled=--compile on")
ways=("ours" "CUDA graph")
sizes=(512 768 1024)
memory=(CUDA_LIMIT_GIB=)
if [ "$precision" = no ]; then graphs=() ways=("ours") sizes=(64 128) memory=(); fi # graphs and limits are a GPU's
mkdir -p "$out"

say() { echo "== $SECONDS s: $*"; }
within() { # what is done, command
    say "$1"
    local left=$((limit - SECONDS))
    if [ "$left" -lt 20 ]; then echo "left out: $1"; else timeout "$left" "${@:2}" || echo "failed: $1"; fi
}

within "whole trainings beside each other" \
    python -m benchmarks.train_speed "${common[@]}" "${peer[@]}" "${graphs[@]}" --rounds 1 --name train_speed

data=$(python -c "from pathlib import Path; from benchmarks.sizes import *
print(write_images(Path('$work'), 16, RESOLUTION['$size']))")
train() { # name, GiB that torch may reserve, flags
    local name=$1 gib=$2
    shift 2
    within "$name: within $gib GiB" \
        env "${memory[@]/%/$gib}" python -m benchmarks.observed "$out/$name.json" train_sdxl_lora.py \
        --pretrained_model_name_or_path "$work/base-$size" --train_data_dir "$data" --output_dir "$out/$name" \
        --cache_dir "$work/cache-$size" --mixed_precision "$precision" --rank 16 --target_modules attention \
        --max_train_steps 8 --report_to none "$@"
    if [ -e "$out/$name.json" ]; then cat "$out/$name.json"; fi
}
train recomputed 6.5 --gradient_checkpointing
train recomputed_int8 4.8 --gradient_checkpointing --base_precision int8 --optimizer adamw8bit
train recomputed_nf4 4.0 --gradient_checkpointing --base_precision nf4 --optimizer adamw8bit
train streamed_nf4 3.0 --gradient_checkpointing --base_precision nf4 --optimizer adamw8bit --stream_base
train streamed 3.0 --gradient_checkpointing --optimizer adamw8bit --stream_base

for pixels in "${sizes[@]}"; do
    for batch in 1 4; do
        within "a step of $pixels px, batch $batch" \
            python -m benchmarks.step_ratios "${common[@]}" --resolution "$pixels" --batch "$batch" --rounds 1 \
            --steps 8 --ways "${ways[@]}" --name "step_${pixels}_batch_$batch"
    done
done
within "what a step's time goes into" \
    python -m benchmarks.step_ratios "${common[@]}" --rounds 1 --steps 8 --ways "${ways[@]}" --profile "${ways[@]}" --name step_ratios
train auto 70 --train_batch_size auto --gradient_accumulation_steps 16
say "tests that need a GPU"
python -m pytest -m gpu -q
