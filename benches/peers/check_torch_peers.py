#!/usr/bin/env python3
"""Compares every operation and option of torch_peers.py with float64 on a small batch; prints the worst errors."""

import numpy as np
import torch

import torch_peers
from torch_peers import OPERATIONS, REFUSE_SOFTCAP, Case

LOSS = [
    "",
    "--label-smoothing 0.1",
    "--weight",
    "--z-loss 1e-2",
    "--soft-targets",
    "--softcap 5",
    "--logit-scale 0.7",
    "--softcap 5 --logit-scale 0.7 --weight --z-loss 1e-2 --label-smoothing 0.1",
    "--softcap 5 --logit-scale -0.7 --weight --z-loss 1e-2 --label-smoothing 0.1 --soft-targets",
]
DRAW = ["--k 3", "--top-p 0.8", "--min-p 0.2", "--k 7 --top-p 0.8", "--k 7 --top-p 0.95 --min-p 0.1"]


def case_of(op, rows, classes, arguments):
    shape = f"{rows}x{classes}"
    return Case(torch_peers.parsed(["--device", "cpu", "--ops", op, "--shapes", shape, *arguments.split()]), rows, classes)


def exact(op, case):
    """The result in float64: of each row, or of each logit, or the loss."""
    options = case.options
    x = case.x.double().numpy()
    rows, classes = x.shape
    y = x * options.logit_scale
    slope = np.full_like(x, options.logit_scale)
    if options.softcap:
        y = options.softcap * np.tanh(y / options.softcap)
        slope *= 1 - (y / options.softcap) ** 2
    lse = np.log(np.exp(y).sum(1, keepdims=True))
    p = np.exp(y - lse)
    if op == "softmax":
        return p
    if op == "log_softmax":
        return y - lse
    if op == "log_sum_exp":
        return lse[:, 0]
    h = -(p * np.log(p)).sum(1, keepdims=True)
    if op == "entropy":
        return h[:, 0]
    if op == "entropy_backward":
        return -x[:, :1] * p * (np.log(p) + h) * slope
    if op == "softmax_backward":
        return p * (x - (x * p).sum(1, keepdims=True)) * slope
    if op == "log_softmax_backward":
        return (x - p * x.sum(1, keepdims=True)) * slope
    weight = 1 if case.weight is None else case.weight.double().numpy()
    t = case.target.double().numpy() if options.soft_targets else np.eye(classes)[case.target.numpy()]
    q = weight * ((1 - options.label_smoothing) * t + options.label_smoothing / classes)
    divisor = rows if options.soft_targets else (weight * t).sum()
    if op == "cross_entropy":
        return (q * (lse - y)).sum() / divisor + options.z_loss * (lse**2).sum() / rows
    pull = q.sum(1, keepdims=True) / divisor + 2 * options.z_loss * lse / rows
    return (p * pull - q / divisor) * slope


def check_classes(op, case, classes, given):
    """Of predict and top_k: the most likely classes in order. Returns the worst error of their probabilities."""
    p = exact("softmax", case)
    k = given.shape[1] if given.ndim == 2 else 1
    wanted = np.argsort(-p, 1, kind="stable")[:, :k]
    assert (classes.reshape(-1, k).numpy() == wanted).all(), op
    return np.abs(given.reshape(-1, k).numpy() - np.take_along_axis(p, wanted, 1)).max()


def check_draws(prepare, arguments):
    """Of sample, over many rows that are the same: the share of each class. Returns how many deviations it is off."""
    rows = 200_000
    case = case_of("sample", rows, 12, arguments)
    case.x[:] = torch.linspace(-1.5, 1.5, 12)[torch.randperm(12)]
    options = case.options
    p = exact("softmax", case)[0]
    order = np.argsort(-p)
    kept = p[order]
    kept[options.k or 12 :] = 0
    kept /= kept.sum()
    kept[np.cumsum(kept) - kept >= options.top_p] = 0
    kept[kept < options.min_p * kept[0]] = 0
    wanted = np.zeros(12)
    wanted[order] = kept / kept.sum()
    classes, given = prepare(case)()
    share = np.bincount(classes[:, 0].numpy(), minlength=12) / rows
    assert ((share > 0) == (wanted > 0)).all(), (arguments, share, wanted)
    assert np.allclose(given.numpy()[:, 0], p[classes[:, 0].numpy()], rtol=1e-5)
    return (np.abs(share - wanted) / np.sqrt(np.maximum(wanted * (1 - wanted), 1e-12) / rows)).max()


def main():
    torch.manual_seed(1)
    for arguments in LOSS:
        errors = {}
        for op, (prepare, _) in OPERATIONS.items():
            if op == "sample" or "--softcap" in arguments and op in REFUSE_SOFTCAP:
                continue
            case = case_of(op, 33, 17, arguments)
            with torch.set_grad_enabled(op in torch_peers.WITH_GRAPH):
                run = prepare(case)
                run()
                # The second run finds what the first has left.
                result = run()
            if op in ("predict", "top_k"):
                errors[op] = check_classes(op, case, *result)
                continue
            if op == "cross_entropy_grad":
                value, result = result
                assert abs(value.item() - exact("cross_entropy", case)) < 1e-5, arguments
            wanted, result = exact(op, case), result.detach().numpy()
            assert np.isfinite(result[np.isfinite(wanted)]).all(), (op, arguments)
            errors[op] = (np.abs(result - wanted) / np.maximum(1, np.abs(wanted))).max()
        print(f"{arguments or 'no option'}: " + ", ".join(f"{op} {error:.1e}" for op, error in errors.items()))
        # max() may pass over a NaN.
        assert all(error < 1e-5 for error in errors.values()), (arguments, errors)
    for prepare in (torch_peers.sample, torch_peers.sample_by_sums):
        for arguments in ["", "--logit-scale 0.7", *DRAW]:
            off = check_draws(prepare, arguments)
            print(f"{prepare.__name__} {arguments or 'no option'}: {off:.1f} standard deviations")
            assert off < 5, arguments


if __name__ == "__main__":
    main()
