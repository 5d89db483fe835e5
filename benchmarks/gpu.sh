#!/usr/bin/env bash
# What only a GPU can show, the most telling first, in ten minutes; each result is written as it comes, and one that
# fails stops no other. What the time does not suffice for is named. OUTPUT_FOLDER/tables.md then has all tables. Last
# come the tests that need a GPU.
#
#     bash benchmarks/gpu.sh OUTPUT_FOLDER [DIFFUSERS_SCRIPT]
#
# TOY=1 tries the script itself, at toy size and without a GPU: its numbers say nothing of one.
# LIMIT: other seconds than 600. WORK: another folder than runs/train_speed for bases and pictures.
set -uo pipefail
out=${1:?give the output folder: bash benchmarks/gpu.sh OUTPUT_FOLDER [DIFFUSERS_SCRIPT]}
limit=${LIMIT:-600}
work=${WORK:-runs/train_speed}
if [ -n "${TOY:-}" ]; then
    export CUDA_VISIBLE_DEVICES=
    size=toy precision=no side=64 sizes=(64) steps=2 tests=(tests/unit/training)
    graphs=() ways=("ours") memory=() # graphs and limits are a GPU's
    few=(--warmup 1 --steps 2 --threads 1) encoding=(--rounds 1 --pictures 4)
elif python -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    size=sdxl precision=bf16 side=1024 sizes=(512 768 1024) steps=8 tests=()
    graphs=(--variant "ours, no graphs=--cuda_graphs off" --variant "ours, compiled=--compile on")
    ways=("ours" "CUDA graph") memory=(CUDA_LIMIT_GIB=)
    few=() encoding=(--precisions fp32 bf16 --rounds 2)
else
    echo "torch sees no NVIDIA GPU here (python -m sdxl_lora.doctor says why); TOY=1 tries this script without one"
    exit 2
fi
peer=()
if [ -n "${2:-}" ]; then
    if [ ! -f "$2" ]; then
        echo "$2 is not a file: give the path of diffusers' train_text_to_image_lora_sdxl.py, or none"
        exit 2
    fi
    peer=(--peer "$2" --peer_variant "diffusers, its best flags=--allow_tf32 --dataloader_num_workers 4")
fi
common=(--size "$size" --work_dir "$work" --output_dir "$out")
mkdir -p "$out"
rm -f "$out"/{train_speed,caching_speed,step_*}.{md,json} # of a run before: what fails now must not show them

say() { echo "== $SECONDS s: $*"; }
within() { # what is done, command
    say "$1"
    local left=$((limit - SECONDS))
    if [ "$left" -lt 20 ]; then echo "left out: $1"; else timeout "$left" "${@:2}" || echo "failed: $1"; fi
}

within "whole trainings beside each other" \
    python -m benchmarks.train_speed "${common[@]}" --precision "$precision" --resolution "$side" --rounds 1 \
    "${peer[@]}" "${graphs[@]}" "${few[@]}"

data=$(python -c "from pathlib import Path; from benchmarks.sizes import write_images
print(write_images(Path('$work'), 16, $side))")
train() { # name, GiB that torch may reserve, flags
    local name=$1 gib=$2
    shift 2
    rm -rf "${out:?}/$name" "$out/$name.json" # else a run that is finished would not train again
    within "$name: within $gib GiB" \
        env "${memory[@]/%/$gib}" python -m benchmarks.observed "$out/$name.json" train_sdxl_lora.py \
        --pretrained_model_name_or_path "$work/base-$size" --train_data_dir "$data" --output_dir "$out/$name" \
        --cache_dir "$work/cache-$size" --mixed_precision "$precision" --rank 16 --target_modules attention \
        --max_train_steps "$steps" --report_to none "$@"
    if [ -e "$out/$name.json" ]; then cat "$out/$name.json" && echo; fi
}
train recomputed 6.5 --gradient_checkpointing
train recomputed_int8 4.8 --gradient_checkpointing --base_precision int8 --optimizer adamw8bit
train recomputed_nf4 4.0 --gradient_checkpointing --base_precision nf4 --optimizer adamw8bit
train streamed_nf4 3.0 --gradient_checkpointing --base_precision nf4 --optimizer adamw8bit --stream_base
train streamed 3.0 --gradient_checkpointing --optimizer adamw8bit --stream_base

within "images into the cache" \
    python -m benchmarks.caching_speed "${common[@]}" --resolution "$side" "${encoding[@]}"
for pixels in "${sizes[@]}"; do
    for batch in 1 4; do
        within "a step of $pixels px, batch $batch" \
            python -m benchmarks.step_ratios "${common[@]}" --precision "$precision" --resolution "$pixels" \
            --batch "$batch" --rounds 1 --steps "$steps" --ways "${ways[@]}" --name "step_${pixels}_batch_$batch"
    done
done
within "what a step's time goes into" \
    python -m benchmarks.step_ratios "${common[@]}" --precision "$precision" --resolution "$side" --rounds 1 \
    --steps "$steps" --ways "${ways[@]}" --profile "${ways[@]}" --name step_ratios
train auto 70 --train_batch_size auto --gradient_accumulation_steps 16
python -m benchmarks.gpu_report "$out"
say "tests that need a GPU"
python -m pytest -m gpu -q "${tests[@]}"
