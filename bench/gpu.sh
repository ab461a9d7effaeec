#!/bin/sh
# Checks and measures a CUDA device, with the archive of `cargo xtask gpu-check`:
#
#     sh bench/gpu.sh gpu-check.tar.xz check
#     sh bench/gpu.sh gpu-check.tar.xz 0.6b|4b|8b
#
# `check` runs the tests, parity, memcheck and benchmarks. The other steps write a checkpoint with random weights to /tmp,
# measure each kernel, and compare with transformers, which needs the Python packages torch, transformers, numpy and
# tokenizers. Each step can be run alone on a new machine. The results are in the folder $OUT, or `results`.
set -e
archive=$(realpath "$1")
step=$2
cd "$(dirname "$0")/.."
export OUT="${OUT:-results}"
mkdir -p target "$OUT"
tar xf "$archive" -C target || python3 -m tarfile -e "$archive" target
with_libraries=target/gpu-check/run.sh
ours=target/gpu-check/bin/qwen3-embed
# GPU.md has the goals of these workloads.
case $step in
check) exec "$with_libraries" ;;
0.6b) workloads="--workloads 1x32,mixed,queries,rerank --batch-sizes 32,128,256 --runs 10" ;;
4b) workloads="--workloads 1x32,32x128,64x512,8x4096,1x32768 --runs 5" ;;
8b) workloads="--workloads 1x32,64x512,1x32768 --runs 1" ;;
*)
    echo "expected check, 0.6b, 4b or 8b, got $step" >&2
    exit 2
    ;;
esac
model=/tmp/qwen3-embed-$step
target/gpu-check/bin/xtask random-checkpoint --size "$step" --outliers none --tokenizer fixtures/tokenizer.json --out "$model"
# The comparison is also run if a kernel cannot be measured.
"$with_libraries" "$ours" bench --kernels --device cuda --model "$model" >"$OUT/kernels-$step.txt" 2>&1 || true
cat "$OUT/kernels-$step.txt"
# shellcheck disable=SC2086 # the workloads are several arguments
"$with_libraries" python3 bench/peers/compare.py --device cuda --threads "$(nproc)" --model "$model" --ours "$ours" \
    --peers pytorch-bf16 --rounds 2 --out "$OUT/$step.json" $workloads
