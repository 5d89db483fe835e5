#!/usr/bin/env bash
# What only a GPU can show, the most telling first; each result is written as it comes, and one that fails stops no other.
#
#     bash benchmarks/gpu.sh OUTPUT_FOLDER [DIFFUSERS_SCRIPT]
#
# SIZE=toy PRECISION=no tries the script itself without a GPU.
set -uo pipefail
out=$1
peer=(${2:+--peer "$2"})
size=${SIZE:-sdxl}
precision=${PRECISION:-bf16}
work=runs/train_speed
common=(--size "$size" --precision "$precision" --output_dir "$out")
graphs=(--variant "ours, no graphs=--cuda_graphs off" --variant "ours, --compile=--compile")
limit=(CUDA_LIMIT_GIB=)
if [ "$precision" = no ]; then graphs=() limit=(); fi # both are a GPU's
mkdir -p "$out"

say() { echo "== $*"; }

say "a step, part by part, and its kernels"
python -m benchmarks.step_ratios "${common[@]}" --rounds 2 --steps 8 --profile ours "CUDA graph" --name step_ratios
say "whole trainings, default flags"
python -m benchmarks.train_speed "${common[@]}" "${peer[@]}" "${graphs[@]}" --name train_speed
say "whole trainings, the peer's best flags"
python -m benchmarks.train_speed "${common[@]}" "${peer[@]}" --rounds 1 --name train_speed_best_flags \
    --peer_flags "--allow_tf32 --dataloader_num_workers 4"
say "batch 4"
python -m benchmarks.train_speed "${common[@]}" "${graphs[@]}" --batch 4 --rounds 1 --name train_speed_batch_4

data=$(python -c "from pathlib import Path; from benchmarks.sizes import *
print(write_images(Path('$work'), 16, RESOLUTION['$size']))")
train() { # name, GiB that torch may reserve, flags
    local name=$1 gib=$2
    shift 2
    say "$name: within $gib GiB"
    env "${limit[@]/%/$gib}" python -m benchmarks.observed "$out/$name.json" train_sdxl_lora.py \
        --pretrained_model_name_or_path "$work/base-$size" --train_data_dir "$data" --output_dir "$out/$name" \
        --cache_dir "$work/cache-$size" --mixed_precision "$precision" --rank 16 --target_modules attention --max_train_steps 8 --report_to none "$@"
    cat "$out/$name.json"
}
train recomputed 6.5 --gradient_checkpointing
train recomputed_int8 4.8 --gradient_checkpointing --base_precision int8 --optimizer adamw8bit
train recomputed_nf4 4.0 --gradient_checkpointing --base_precision nf4 --optimizer adamw8bit
train auto 70 --train_batch_size auto --gradient_accumulation_steps 16
say "tests that need a GPU"
python -m pytest -m gpu -q
