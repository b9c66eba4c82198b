#!/usr/bin/env bash
# Everything that is to be known of a real GPU, in one go: correctness first, then the tables and pictures of every type, what
# tuning finds, and PyTorch's figures where a Python with torch is at hand.
#
#     benches/real_gpu.sh [DEVICE] [FOLDER]      DEVICE is `gpu` (the default) or a part of an adapter's name
#
# LOGITS=path names a binary that is built already, PYTHON=path the interpreter.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-gpu}
folder=${2:-benches/results}
python=${PYTHON:-python3}
if [ -z "${LOGITS:-}" ]; then
    cargo build --release --bin logits
    LOGITS=target/release/logits
fi
mkdir -p "$folder"
"$LOGITS" info | tee "$folder/info.txt"
"$LOGITS" check --device "$device" | tee "$folder/check.txt"
shapes=262144x10,65536x100,16384x1000,4096x8192,1024x32000,256x128256,8x262144,128x262144
for dtype in f32 f16 bf16; do
    "$LOGITS" bench --device "$device" --dtype "$dtype" --ops all --shapes "$shapes" --plot "$folder/$dtype.svg" |
        tee "$folder/$dtype.txt"
done
"$LOGITS" tune --device "$device" --out "$folder/tuning.txt" | tee "$folder/tune.txt"
"$LOGITS" bench --device "$device" --shapes "$shapes" --tuning "$folder/tuning.txt" --plot "$folder/tuned.svg" |
    tee "$folder/tuned.txt"
if "$python" -c 'import torch' 2> /dev/null; then
    for dtype in f32 f16 bf16; do
        "$python" benches/peers/torch_peers.py --dtype "$dtype" | tee "$folder/torch_$dtype.jsonl"
    done
else
    echo "SKIPPED PyTorch: $python has no torch" | tee "$folder/torch_skipped.txt"
fi
