#!/usr/bin/env python3
"""The errors of `logits loss` on the CPU at every SIMD level, and of PyTorch's f32, against float64 on the same logits:

    cargo build --release --bin logits && python3 benches/peers/errors.py target/release/logits

prints a table: the worst relative error of a probability and of a row's loss, how far a row of probabilities is from 1, and the
worst absolute error of a gradient of the sum, each over all rows.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F

CLASSES = [1, 2, 10, 100, 1000, 32000, 262144, 1000003]


def inputs(classes, kind, rng):
    rows = max(2, min(256, (1 << 21) // classes))
    x = rng.normal(0, 3, (rows, classes))
    if kind == "confident":
        x[:, 0] += 20 + np.log(classes)
    if kind == "far":
        x += 5000
    targets = np.zeros(rows, np.int64) if kind == "confident" else rng.integers(0, classes, rows)
    return x.astype(np.float32), targets


def exact(x, targets):
    """In float64, the loss from the sum of the classes other than the largest."""
    x = x.astype(np.float64)
    rows = np.arange(len(x))
    top = x.argmax(1)
    e = np.exp(x - x[rows, top][:, None])
    e_others = e.copy()
    e_others[rows, top] = 0
    others = e_others.sum(1)
    p = e / (1 + others)[:, None]
    loss = (x[rows, top] - x[rows, targets]) + np.log1p(others)
    gradient = p.copy()
    e_target = e.copy()
    e_target[rows, targets] = 0
    gradient[rows, targets] = -e_target.sum(1) / (1 + others)
    return p, loss, gradient


def worst(p, loss, gradient, wanted):
    wanted_p, wanted_loss, wanted_gradient = wanted
    normal = wanted_p >= np.finfo(np.float32).tiny
    relative = np.abs(p - wanted_p)[normal] / wanted_p[normal]
    is_zero = wanted_loss == 0
    off = np.where(is_zero, np.abs(loss), np.abs(loss - wanted_loss) / np.where(is_zero, 1, np.abs(wanted_loss)))
    return [relative.max(), np.abs(p.sum(1) - 1).max(), off.max(), np.abs(gradient - wanted_gradient).max()]


def ours(binary, level, x, targets, folder):
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", targets)
    names = {"probs": "p.npy", "per-row": "r.npy", "grad": "g.npy"}
    files = [part for name, file in names.items() for part in (f"--{name}", str(folder / file))]
    command = [binary, "loss", "--logits", folder / "x.npy", "--targets", folder / "y.npy", "--device", "cpu"]
    command += ["--reduction", "sum", "--json", *files]
    subprocess.run(command, env=os.environ | {"LOGITS_SIMD": level}, check=True, stdout=subprocess.DEVNULL)
    return [np.load(folder / names[name]).astype(np.float64) for name in ("probs", "per-row", "grad")]


def pytorch(x, targets):
    leaf, y = torch.tensor(x, requires_grad=True), torch.tensor(targets)
    loss = F.cross_entropy(leaf, y, reduction="none")
    loss.sum().backward()
    p = F.softmax(leaf.detach(), 1)
    return [t.detach().double().numpy() for t in (p, loss, leaf.grad)]


def main():
    binary = sys.argv[1]
    levels = ["avx512", "avx2", "neon", "simd128", "portable"]
    there = [level for level in levels if subprocess.run([binary, "info"], env=os.environ | {"LOGITS_SIMD": level}, capture_output=True).returncode == 0]
    print("| logits | classes | of | probability | sum of a row | loss | gradient |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for kind in ["normal", "confident", "far"]:
            for classes in CLASSES:
                x, targets = inputs(classes, kind, np.random.default_rng(classes))
                wanted = exact(x, targets)
                results = {level: ours(binary, level, x, targets, folder) for level in there}
                results[f"PyTorch {torch.__version__.split('+')[0]}"] = pytorch(x, targets)
                for who, result in results.items():
                    errors = " | ".join(f"{error:.1e}" for error in worst(*result, wanted))
                    print(f"| {kind} | {classes} | {who} | {errors} |", flush=True)


if __name__ == "__main__":
    main()
