#!/usr/bin/env bash
# The CPU path at every SIMD level of this machine, and PyTorch beside it where its Python is given:
#     benches/cpu.sh [PYTHON]
# prints a table of each operation: median ms (copies; of PyTorch, how many times as long as the first level), on as many
# threads as there are cores, of SHAPES and DTYPE where those are set. The machine must be quiet.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --quiet --release --bin logits
logits=${CARGO_TARGET_DIR:-target}/release/logits
results=$(mktemp)
trap 'rm -f "$results"' EXIT
levels=$(for level in avx512 avx2 neon simd128 portable; do
    LOGITS_SIMD=$level $logits info >/dev/null 2>&1 && echo "$level"
done)
# Shape by shape, for whatever slows the machine to slow all that stand in one line.
for shape in ${SHAPES:-262144x10 65536x100 16384x1000 1024x32000 256x128256 8x262144}; do
    for level in $levels; do
        LOGITS_SIMD=$level $logits bench --device cpu --ops softmax,cross_entropy,cross_entropy_grad \
            --shapes "$shape" --dtype "${DTYPE:-f32}" --json | sed "s/^{/{\"who\":\"$level\",/" >>"$results"
    done
    if [ $# -gt 0 ]; then
        "$1" benches/peers/torch_peers.py --device cpu --shapes "$shape" --dtype "${DTYPE:-f32}" >>"$results"
    fi
done
python3 - "$results" <<'END'
import json
import sys

rows = [json.loads(line) for line in open(sys.argv[1])]
for row in rows:
    row.setdefault("who", "PyTorch")
who = list(dict.fromkeys(row["who"] for row in rows))
for op in dict.fromkeys(row["op"] for row in rows):
    print(f"\n| `{op}` | {' | '.join(who)} |\n|---|{'---|' * len(who)}")
    of = {(f"{row['rows']}x{row['classes']}", row["who"]): row for row in rows if row["op"] == op}
    for shape in dict.fromkeys(shape for shape, _ in of):
        best = of[shape, who[0]]["median_ms"]
        cells = [f"{row['median_ms']:.2f} ({row['median_ms'] / best:.1f}x)" if "peer" in row else f"{row['median_ms']:.2f} ({row['copies']:.2f})"
                 for row in (of[shape, one] for one in who)]
        print(f"| {shape} | {' | '.join(cells)} |")
END
