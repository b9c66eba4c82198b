#!/usr/bin/env bash
# The CPU path at every SIMD level of this machine, and PyTorch beside it where its Python is given:
#     benches/cpu.sh [PYTHON]
# prints a table with a line for each operation, its options and shape. OPS and SHAPES, separated by spaces or commas, restrict
# it; DTYPE is the type of the logits (f32), BUDGET the milliseconds of each measurement (500). There are as many threads as
# hardware threads (nproc), for PyTorch too, whose default is the physical cores. PyTorch's results are compared with float64
# before anything is timed. All of it takes an hour or two, in which the machine must be quiet.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -eq 0 ] || "$1" benches/peers/check_torch_peers.py >&2
cargo build --quiet --release --bin logits
logits=${CARGO_TARGET_DIR:-target}/release/logits
results=$(mktemp)
trap 'rm -f "$results"' EXIT
levels=$(for level in avx512 avx2 neon simd128 portable; do
    LOGITS_SIMD=$level $logits info >/dev/null 2>&1 && echo "$level"
done) || true
losses="cross_entropy cross_entropy_grad cross_entropy_backward"
capped="softmax log_softmax log_sum_exp entropy entropy_backward predict top_k"
all="$capped sample softmax_backward log_softmax_backward $losses"
# Options, and the operations that have them.
sets=(
    ":$all"
    "--label-smoothing 0.1:$losses"
    "--soft-targets:$losses"
    "--softcap 30:$capped $losses"
    "--weight:$losses"
    "--z-loss 1e-4:$losses"
    "--logit-scale 0.7:$all"
    "--k 50 --top-p 0.9:sample"
)
shapes=${SHAPES:-262144x10 65536x100 16384x1000 1024x32000 256x128256 8x262144 32x128256 1x128256}
# Shape by shape and set by set, so that whatever slows the machine slows all that stand in one line.
for shape in ${shapes//,/ }; do
    for set in "${sets[@]}"; do
        given=${set%%:*} ops=
        for op in ${set#*:}; do
            case " ${OPS:-$all} " in *[\ ,]"$op"[\ ,]*) ops+=${ops:+,}$op ;; esac
        done
        # No more than there are classes.
        [ "${shape#*x}" -ge 50 ] || given=${given/--k 50/--k ${shape#*x}}
        [ -n "$ops" ] || continue
        # shellcheck disable=SC2206
        arguments=(--device cpu --ops "$ops" --shapes "$shape" --dtype "${DTYPE:-f32}" --budget "${BUDGET:-500}" $given)
        tag() { sed "s/^{/{\"who\":\"$1\",\"given\":\"${set%%:*}\",/" >>"$results"; }
        for level in $levels; do
            LOGITS_SIMD=$level $logits bench --json "${arguments[@]}" | tag "$level"
        done
        [ $# -eq 0 ] || "$1" benches/peers/torch_peers.py --threads "$(nproc)" "${arguments[@]}" | tag PyTorch
    done
done
python3 - "$results" <<'END'
import json
import sys

times, copies, device = {}, {}, ""
for row in map(json.loads, open(sys.argv[1])):
    line = row["op"], row["given"], f"{row['rows']}x{row['classes']}"
    # Where PyTorch has two forms of an operation, the faster counts.
    ms = times.setdefault(line, {})
    ms[row["who"]] = min(row["median_ms"], ms.get(row["who"], row["median_ms"]))
    if row["who"] != "PyTorch":
        copies.setdefault(line, row["copies"])
        device = f"{row['device']}, {row['dtype']}"
levels = [who for who in dict.fromkeys(who for ms in times.values() for who in ms) if who != "PyTorch"]
first, others = levels[0], levels[1:]
head = ["operation", "shape", "ms", "copies", "over softmax", "over PyTorch", *(f"{level} over {first}" for level in others)]
print(f"{device}, {first}:\n\n| {' | '.join(head)} |\n|---|---|{'---:|' * (len(head) - 2)}")


def over(ms, other):
    return f"{ms / other:.2f}" if other else "-"


for op, given in dict.fromkeys((op, given) for op, given, _ in times):
    for line, ms in times.items():
        if line[:2] == (op, given):
            softmax = times.get(("softmax", "", line[2]), {}).get(first)
            cells = [f"`{op}` {given}".strip(), line[2], f"{ms[first]:.3f}", f"{copies[line]:.2f}", over(ms[first], softmax)]
            cells += [over(ms[first], ms.get("PyTorch")), *(over(ms[level], ms[first]) for level in others)]
            print(f"| {' | '.join(cells)} |")
END
