#!/usr/bin/env python3
"""Writes tests/golden/pytorch.json: PyTorch's answers in float64, for tests/suite/pytorch.rs.

    pip install torch==2.15.0 numpy && python3 tests/golden/pytorch.py

Logits are drawn in float32 and widened, so that both sides start from the same numbers.
"""

import json
import math
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(20)


def number(x):
    if math.isnan(x):
        return "NaN"
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    return x


def case(name, logits, targets, weight=None, ignore_index=-100, label_smoothing=0.0, z_loss=0.0):
    x = torch.tensor(logits, dtype=torch.float32).double() if not torch.is_tensor(logits) else logits.double()
    t = torch.tensor(targets)
    w = None if weight is None else torch.tensor(weight, dtype=torch.float32).double()
    reductions = {}
    for reduction in ("mean", "sum", "none"):
        leaf = x.clone().requires_grad_(True)
        options = dict(weight=w, ignore_index=ignore_index, label_smoothing=label_smoothing)
        loss = F.cross_entropy(leaf, t, reduction=reduction, **options)
        if z_loss:
            # Not PyTorch's own: of each counted row, and a mean over those.
            z = z_loss * torch.where(t == ignore_index, 0.0, torch.logsumexp(leaf, 1) ** 2)
            loss = loss + {"mean": z.sum() / (t != ignore_index).sum(), "sum": z.sum(), "none": z}[reduction]
        loss.sum().backward()
        reductions[reduction] = {
            "loss": [number(v) for v in loss.detach().reshape(-1).tolist()],
            "gradient": [number(v) for v in leaf.grad.reshape(-1).tolist()],
        }
    flat = lambda tensor: [number(v) for v in tensor.reshape(-1).tolist()]
    return {
        "name": name,
        "rows": x.shape[0],
        "classes": x.shape[1],
        "logits": flat(x),
        "targets": targets,
        "weight": weight,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "z_loss": z_loss,
        "softmax": flat(F.softmax(x, 1)),
        "log_softmax": flat(F.log_softmax(x, 1)),
        "log_sum_exp": flat(torch.logsumexp(x, 1)),
        "argmax": x.argmax(1).tolist(),
        "reductions": reductions,
    }


nan, inf = math.nan, math.inf
cases = [
    case("plain", torch.randn(4, 5), [0, 4, 2, 1]),
    case("ignored", torch.randn(5, 3), [0, -1, 2, -1, 1], ignore_index=-1),
    case("weighted", torch.randn(4, 6) * 3, [5, 0, 5, 3], weight=[0.5, 1.0, 0.0, 2.0, 0.25, 3.0]),
    case("weights of nothing", torch.randn(2, 3), [1, 1], weight=[1.0, 0.0, 1.0]),
    case("nothing counted", torch.randn(2, 3), [-100, -100]),
    case("an ignored class that exists", torch.randn(3, 4), [2, 0, 2], ignore_index=2),
    case("one class", [[3.5], [-2.0]], [0, 0]),
    case("wide", torch.randn(3, 17) * 30, [1, 16, 8]),
    case("confident", [[20.0, 0.0], [0.0, 20.0], [88.0, -88.0]], [0, 0, 0]),
    case("-inf", [[0.0, -inf], [-inf, 1.0], [1.0, -inf]], [0, 1, 1]),
    case("NaN and +inf", [[nan, 1.0, 2.0], [1.0, inf, 2.0], [1.0, 2.0, 3.0], [-inf] * 3], [0, 1, 2, 0]),
    case("ignored rows of no number", [[nan, 1.0], [1.0, inf], [1.0, 2.0], [-inf, -inf]], [-100, -100, 1, -100]),
    case("smoothed", torch.randn(4, 7) * 3, [0, 6, 2, 2], label_smoothing=0.1),
    case("smoothed, some ignored", torch.randn(5, 3), [0, -100, 2, 1, -100], label_smoothing=0.25),
    case("smoothed and weighted", torch.randn(4, 6) * 3, [5, 0, -100, 3], weight=[0.5, 1.0, 0.0, 2.0, 0.25, 3.0], label_smoothing=0.2),
    case("smoothed evenly", torch.randn(3, 5), [1, 4, 0], weight=[0.5, 1.0, 0.0, 2.0, 0.25], label_smoothing=1.0),
    case("smoothed, confident", [[20.0, 0.0], [0.0, 20.0]], [0, 0], label_smoothing=0.1),
    case("smoothed, -inf", [[0.0, -inf, 1.0], [-inf, 1.0, 2.0], [1.0, 2.0, 3.0]], [0, 0, -100], label_smoothing=0.1),
    case("smoothed, -inf without weight", [[0.0, -inf, 1.0], [2.0, 1.0, 2.0]], [0, 2], weight=[1.0, 0.0, 2.0], label_smoothing=0.1),
    case("smoothed, NaN and +inf", [[nan, 1.0], [1.0, inf], [1.0, 2.0], [-inf, -inf]], [0, 1, 1, 0], label_smoothing=0.1),
    case("smoothed, weights of nothing", torch.randn(2, 3), [1, 1], weight=[1.0, 0.0, 1.0], label_smoothing=0.1),
    case("z-loss", torch.randn(4, 7) * 3 + 5, [0, -100, 2, 2], z_loss=0.01),
    case("z-loss, weighted and smoothed", torch.randn(4, 6) * 3, [5, 0, -100, 3], weight=[0.5, 1.0, 0.0, 2.0, 0.25, 3.0], label_smoothing=0.2, z_loss=0.05),
    case("z-loss next to 0", [[0.0, -20.0], [-0.7, -0.7], [-3.0, -4.0]], [0, 1, 0], z_loss=0.5),
    case("z-loss of infinities", [[0.0, -inf, 1.0], [-inf, 1.0, 2.0]], [0, 0], z_loss=0.1),
    case("ties", [[1.0, 2.0, 2.0], [0.0, -0.0, 0.0]], [2, 0]),
]
path = pathlib.Path(__file__).with_suffix(".json")
lines = ",\n".join(json.dumps(c) for c in cases)
path.write_text(f'{{"torch": "{torch.__version__.split("+")[0]}", "cases": [\n{lines}\n]}}\n')
