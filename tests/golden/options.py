#!/usr/bin/env python3
"""Writes tests/golden/options.json: PyTorch's losses and gradients in float64 over the cross product of the loss's options, for
tests/suite/options.rs.

    pip install torch==2.15.0 numpy && python3 tests/golden/options.py

What PyTorch's cross_entropy does not have (z-loss, soft cap, scale, gradients of rows) is composed in front of it and after
it, and differentiated by its autograd. Inputs are drawn in float32 and widened, so that both sides start from the same
numbers.
"""

import itertools
import json
import pathlib

import torch
import torch.nn.functional as F

torch.manual_seed(7)
CLASSES = 5


def narrow(tensor):
    return tensor.to(torch.float32).double()


def digits(tensor):
    return [float(f"{v:.11g}") for v in tensor.reshape(-1).tolist()]


# The same four rows as a matrix, and as two blocks of two columns.
inputs = {}
for layout, shape in (("rows", (4, CLASSES)), ("planes", (2, CLASSES, 2))):
    rows = (shape[0],) + shape[2:]
    inputs[layout] = {
        "shape": shape,
        "x": narrow(torch.randn(shape) * 3),
        "targets": torch.randint(0, CLASSES, rows),
        "probabilities": narrow(torch.softmax(torch.randn(shape), 1)),
        "row_gradients": narrow(torch.randn(rows)),
    }
    # A row that may be ignored.
    inputs[layout]["targets"].view(-1)[1] = 2
weight = narrow(torch.tensor([0.5, 1.25, 0.0, 2.0, 0.75]))

axes = {
    "soft": (False, True),
    "ignored": (False, True),
    "weighted": (False, True),
    "label_smoothing": (0.0, 0.125, 1.0),
    "z_loss": (0.0, 0.03125),
    "softcap": (None, 4.0),
    "logit_scale": (1.0, 0.625, -0.75),
    "reduction": ("mean", "sum", "none"),
}
cases = []
for nth, values in enumerate(itertools.product(*axes.values())):
    case = dict(zip(axes, values))
    if case["soft"] and case["ignored"]:
        continue
    given = inputs["rows" if nth % 2 else "planes"]
    x = given["x"].clone().requires_grad_(True)
    y = case["logit_scale"] * x
    if case["softcap"] is not None:
        y = case["softcap"] * torch.tanh(y / case["softcap"])
    target = given["probabilities"] if case["soft"] else given["targets"]
    # Class 2 is one that exists: the rows of it do not count.
    ignore_index = 2 if case["ignored"] else -100
    options = dict(weight=weight if case["weighted"] else None, label_smoothing=case["label_smoothing"])
    if not case["soft"]:
        options["ignore_index"] = ignore_index
    losses = F.cross_entropy(y, target, reduction="none", **options)
    counted = torch.ones_like(losses) if case["soft"] else (given["targets"] != ignore_index).double()
    z = case["z_loss"] * torch.logsumexp(y, 1) ** 2 * counted
    upstream = (1.0, -2.5)[nth // 2 % 2]
    by_rows = nth // 3 % 2 == 1
    if case["reduction"] == "mean":
        loss = F.cross_entropy(y, target, reduction="mean", **options)
        # As if every row's loss had its factor, under the same divisor.
        divisor = losses.sum() / loss
        rows = losses / divisor.detach() + z / counted.sum()
        value = loss + z.sum() / counted.sum()
    else:
        rows = losses + z
        value = rows.sum()
    factors = given["row_gradients"] if by_rows else torch.ones_like(rows)
    (upstream * factors * rows).sum().backward()
    case.update(
        layout="rows" if nth % 2 else "planes",
        upstream=upstream,
        by_rows=by_rows,
        loss=float(f"{value.item():.13g}"),
        per_row=digits(losses + z) if case["reduction"] != "mean" else None,
        gradient=digits(x.grad),
    )
    cases.append(case)

numbers = lambda tensor: [float(v) for v in tensor.reshape(-1).tolist()]
head = {
    "torch": torch.__version__.split("+")[0],
    "weight": numbers(weight),
    "inputs": {
        layout: {key: list(value) if key == "shape" else numbers(value) for key, value in given.items()}
        for layout, given in inputs.items()
    },
}
lines = ",\n".join(json.dumps(case) for case in cases)
path = pathlib.Path(__file__).with_suffix(".json")
path.write_text(json.dumps(head)[:-1] + f', "cases": [\n{lines}\n]}}\n')
print(len(cases), "combinations")
