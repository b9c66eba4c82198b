"""Times PyTorch's counterpart of every operation and option of `logits bench`, under the same names:

    python3 benches/peers/torch_peers.py --device cpu --ops cross_entropy --shapes 1024x32000 --label-smoothing 0.1

prints one JSON object a line, beside a plain copy of the same logits on the same device in the same run. On CUDA also
torch.compile and, where they are installed, Liger and QuACK, with softmax, cross_entropy and cross_entropy_grad; there
each run takes the next of several inputs, so that no cache holds it, and is timed by the device's events.

Each counterpart is the fastest of the forms in which it is commonly written; `sample` has two of them, because the most
common one is slow. Results are written into memory that is there already: by `out=`, and where PyTorch allocates anyway
(autograd, F.cross_entropy), by an allocator that keeps what is freed, so that no run pays for fresh pages.
benches/peers/check_torch_peers.py compares the results with float64.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

SHAPES = "262144x10,65536x100,16384x1000,1024x32000,256x128256,8x262144"
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
# Runs of a measurement at most, and at least where the budget is not given: as `logits bench`.
RUNS, LEAST_RUNS, BUDGET_MS = 31, 5, 2000


class Case:
    """Logits and targets of a shape, and the options. What an operation writes into it allocates itself, once."""

    def __init__(self, options, rows, classes):
        self.options = options
        dtype = TYPES[options.dtype]
        self.x = torch.empty(rows, classes, device=options.device).uniform_(-8, 8).to(dtype)
        self.scratch = torch.empty_like(self.x) if options.softcap or options.logit_scale != 1 else None
        if options.soft_targets:
            self.target = torch.empty(rows, classes, device=options.device).uniform_(0, 2 / classes).to(dtype)
        else:
            self.target = torch.randint(0, classes, (rows,), device=options.device)
        weights = 0.5 + 0.25 * (torch.arange(classes, device=options.device) % 7)
        self.weight = weights.to(dtype) if options.weight else None

    def seen(self):
        """The logits after the scale and the cap, in memory that is there already."""
        scale, cap = self.options.logit_scale, self.options.softcap
        if cap:
            return torch.mul(self.x, scale / cap, out=self.scratch).tanh_().mul_(cap)
        return self.x if scale == 1 else torch.mul(self.x, scale, out=self.scratch)

    def leaf(self):
        """The logits for autograd. They are a copy: Liger writes the gradient over them."""
        return self.x.clone().requires_grad_()

    def seen_by_autograd(self, leaf):
        scale, cap = self.options.logit_scale, self.options.softcap
        if cap:
            return cap * torch.tanh(leaf * (scale / cap))
        return leaf if scale == 1 else leaf * scale

    def scaled(self, gradient):
        """Brings a gradient with respect to scaled logits to one with respect to the logits, in place."""
        return gradient if self.options.logit_scale == 1 else gradient.mul_(self.options.logit_scale)

    def loss(self, y):
        return loss(y, self.target, self.weight, self.options.label_smoothing, self.options.z_loss)

    def empty(self, *shape, dtype=None):
        return torch.empty(*(shape or self.x.shape), dtype=dtype or self.x.dtype, device=self.x.device)


def loss(y, target, weight, label_smoothing, z_loss):
    value = F.cross_entropy(y, target, weight=weight, label_smoothing=label_smoothing)
    return value + z_loss * torch.logsumexp(y, 1).square().mean() if z_loss else value


# Each of the following functions prepares an operation and returns what is timed, which returns the results.


def softmax(case):
    out = case.empty()
    return lambda: torch.softmax(case.seen(), 1, out=out)


def log_softmax(case):
    out = case.empty()
    return lambda: torch.log_softmax(case.seen(), 1, out=out)


def log_sum_exp(case):
    out = case.empty(len(case.x))
    return lambda: torch.logsumexp(case.seen(), 1, out=out)


def entropy(case):
    """The formula of torch.distributions.Categorical. torch.special.entr over the softmax is twice as slow on a CPU."""
    logs, terms, out = case.empty(), case.empty(), case.empty(len(case.x))

    def run():
        torch.log_softmax(case.seen(), 1, out=logs)
        return torch.sum(torch.exp(logs, out=terms).mul_(logs), 1, out=out).neg_()

    return run


def entropy_backward(case):
    """The backward alone, over a graph that is there already; the upstream gradient is the first logit of each row."""
    leaf = case.leaf()
    logs = torch.log_softmax(case.seen_by_autograd(leaf), 1)
    entropies = -(logs.exp() * logs).sum(1)
    upstream = case.x[:, 0].contiguous()
    return lambda: torch.autograd.grad(entropies, leaf, upstream, retain_graph=True)[0]


def predict(case):
    """The most likely class and its probability. The largest logit beside torch.logsumexp is slower."""
    p, largest, classes = case.empty(), case.empty(len(case.x)), case.empty(len(case.x), dtype=torch.int64)

    def run():
        torch.softmax(case.seen(), 1, out=p)
        torch.max(p, 1, out=(largest, classes))
        return classes, largest

    return run


def top_k(case):
    """The most likely classes and their probabilities."""
    k = case.options.k or min(5, case.x.shape[1])
    p, largest, classes = case.empty(), case.empty(len(case.x), k), case.empty(len(case.x), k, dtype=torch.int64)

    def run():
        torch.softmax(case.seen(), 1, out=p)
        torch.topk(p, k, out=(largest, classes))
        return classes, largest

    return run


def sample(case, draw=torch.multinomial):
    """A class drawn by its probability, and this. --top-p needs a sort: of the --k largest where both are given."""
    rows, classes = case.x.shape
    top_p, min_p = case.options.top_p, case.options.min_p
    k = min(case.options.k or classes, classes)
    is_sorted = k < classes or top_p < 1
    p, kept, order = case.empty(), None, None
    if is_sorted:
        kept, order = case.empty(rows, k), case.empty(rows, k, dtype=torch.int64)

    def run():
        weights = torch.softmax(case.seen(), 1, out=p)
        if k < classes:
            weights = torch.topk(p, k, out=(kept, order))[0]
        elif is_sorted:
            weights = torch.sort(p, 1, descending=True, out=(kept, order))[0]
        if top_p < 1:
            # A class is left out where those before it are enough. 16 bits are too few for the sums.
            sums = weights.cumsum(1, dtype=torch.float32)
            enough = top_p * sums[:, -1:]
            weights.masked_fill_(sums.sub_(weights) >= enough, 0)
        if min_p:
            weights.masked_fill_(weights < min_p * weights.amax(1, keepdim=True), 0)
        drawn = draw(weights, 1)
        index = order.gather(1, drawn) if is_sorted else drawn
        return index, weights.gather(1, drawn)

    return run


def sample_by_sums(case):
    """The same with one random number a row in place of one a class: on a CPU much faster than torch.multinomial."""

    def draw(weights, _):
        sums = weights.cumsum(1, dtype=torch.float32)
        point = torch.rand(len(sums), 1, device=sums.device) * sums[:, -1:]
        return torch.searchsorted(sums, point, right=True).clamp_(max=sums.shape[1] - 1)

    return sample(case, draw)


def softmax_backward(case):
    """From the probabilities; the upstream gradient is the logits."""
    p, out = torch.softmax(case.seen(), 1), case.empty()
    backward = torch.ops.aten._softmax_backward_data.out
    return lambda: case.scaled(backward(case.x, p, 1, p.dtype, grad_input=out))


def log_softmax_backward(case):
    logs, out = torch.log_softmax(case.seen(), 1), case.empty()
    backward = torch.ops.aten._log_softmax_backward_data.out
    return lambda: case.scaled(backward(case.x, logs, 1, logs.dtype, out=out))


def cross_entropy(case):
    return lambda: case.loss(case.seen())


def cross_entropy_grad(case, loss=None):
    """The loss and its gradient. A `.grad` that is kept is zeroed and added to: that is slower than a new one."""
    leaf, loss = case.leaf(), loss or case.loss

    def run():
        leaf.grad = None
        value = loss(case.seen_by_autograd(leaf))
        value.backward()
        return value, leaf.grad

    return run


def cross_entropy_backward(case):
    """The backward alone, over a graph that is there already."""
    leaf = case.leaf()
    value = case.loss(case.seen_by_autograd(leaf))
    return lambda: torch.autograd.grad(value, leaf, retain_graph=True)[0]


# With the arrays of the logits' shape that each must read and write once, without soft targets.
OPERATIONS = {
    "softmax": (softmax, 2),
    "log_softmax": (log_softmax, 2),
    "log_sum_exp": (log_sum_exp, 1),
    "entropy": (entropy, 1),
    "entropy_backward": (entropy_backward, 2),
    "predict": (predict, 1),
    "top_k": (top_k, 1),
    "sample": (sample, 1),
    "softmax_backward": (softmax_backward, 3),
    "log_softmax_backward": (log_softmax_backward, 3),
    "cross_entropy": (cross_entropy, 1),
    "cross_entropy_grad": (cross_entropy_grad, 2),
    "cross_entropy_backward": (cross_entropy_backward, 2),
}
LOSSES = ("cross_entropy", "cross_entropy_grad", "cross_entropy_backward")
# Run without `torch.no_grad`.
WITH_GRAPH = ("entropy_backward", "cross_entropy_grad", "cross_entropy_backward")
REFUSE_SOFTCAP = ("sample", "softmax_backward", "log_softmax_backward")


def other_peers(options):
    """The name, the softmax, and the loss of (logits, target, weight); Liger and QuACK only without options."""
    smoothing, z_loss = options.label_smoothing, options.z_loss
    yield "torch.compile", torch.compile(lambda x: F.softmax(x, 1)), torch.compile(
        lambda y, target, weight: loss(y, target, weight, smoothing, z_loss)
    )
    if described(options):
        return
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy, liger_softmax

        yield "liger", liger_softmax, lambda y, target, _: liger_cross_entropy(y, target)
    except ImportError as missing:
        print(json.dumps({"peer": "liger", "skipped": str(missing)}))
    try:
        import quack

        yield "quack", quack.softmax, lambda y, target, _: quack.cross_entropy(y, target, reduction="mean")
    except ImportError as missing:
        print(json.dumps({"peer": "quack", "skipped": str(missing)}))


def forms(op, others):
    """Each peer that has the operation, with the function that prepares it."""
    yield "torch", OPERATIONS[op][0]
    if op == "sample":
        yield "torch.searchsorted", sample_by_sums
    for peer, softmax, loss in others:
        if op == "softmax":
            yield peer, lambda case, softmax=softmax: lambda: softmax(case.seen())
        elif op == "cross_entropy":
            yield peer, lambda case, loss=loss: lambda: loss(case.seen(), case.target, case.weight)
        elif op == "cross_entropy_grad":
            yield peer, lambda case, loss=loss: cross_entropy_grad(case, lambda y: loss(y, case.target, case.weight))


def keep_freed_memory():
    """Makes glibc keep the memory that is freed, as PyTorch itself does on CUDA: fresh pages cost more than values."""
    if sys.platform == "linux":
        m_trim_threshold, m_mmap_max = -1, -4
        mallopt = getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)
        mallopt(m_mmap_max, 0)
        mallopt(m_trim_threshold, 2**31 - 1)


def median_ms(runs, options):
    """Takes the runs in turn, each of which has inputs of its own."""
    for nth in range(2):
        runs[nth % len(runs)]()
    times, spent = [], 0
    least = 1 if options.budget else LEAST_RUNS
    while len(times) < least or len(times) < RUNS and spent < (options.budget or BUDGET_MS):
        run = runs[len(times) % len(runs)]
        start = time.perf_counter()
        if options.device == "cuda":
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run()
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]))
        else:
            run()
            times.append((time.perf_counter() - start) * 1e3)
        spent += (time.perf_counter() - start) * 1e3
    return statistics.median(times)


def described(options):
    """The options that differ from their defaults, as `logits bench` names them."""
    names = "label_smoothing", "weight", "z_loss", "soft_targets", "softcap", "logit_scale", "k", "top_p", "min_p"
    given = [(name, getattr(options, name)) for name in names]
    unused = {"logit_scale": 1, "top_p": 1}
    return " ".join(
        name if value is True else f"{name}={value:g}" for name, value in given if value and value != unused.get(name)
    )


def parsed(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, help="of the CPU (default: PyTorch's)")
    parser.add_argument("--ops", default="softmax,log_softmax,cross_entropy,cross_entropy_grad", help="or all")
    parser.add_argument("--shapes", default=SHAPES, help="rows x classes, separated by commas")
    parser.add_argument("--dtype", choices=TYPES, default="f32")
    parser.add_argument("--label-smoothing", type=float, default=0.0, metavar="E")
    parser.add_argument("--weight", action="store_true", help="weigh the classes, from 0.5 to 2")
    parser.add_argument("--z-loss", type=float, default=0.0, metavar="Z")
    parser.add_argument("--soft-targets", action="store_true", help="targets that are probabilities")
    parser.add_argument("--softcap", type=float, metavar="S")
    parser.add_argument("--logit-scale", type=float, default=1.0, metavar="A")
    parser.add_argument("--k", type=int, metavar="K", help="for top_k (5 if not given) and sample (all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="M", help="least part of the largest probability")
    parser.add_argument("--budget", type=float, metavar="MS", help="for each measurement (default: 2000)")
    options = parser.parse_args(arguments)
    options.ops = list(OPERATIONS) if options.ops == "all" else options.ops.split(",")
    unknown = [op for op in options.ops if op not in OPERATIONS]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(OPERATIONS)}")
    refused = [op for op in options.ops if op in REFUSE_SOFTCAP]
    if options.softcap and refused:
        parser.error(f"{refused[0]} has no --softcap, as in `logits bench`")
    options.shapes = [tuple(map(int, shape.split("x"))) for shape in options.shapes.split(",")]
    return options


def main():
    options = parsed()
    if options.threads:
        torch.set_num_threads(options.threads)
    on_cuda = options.device == "cuda"
    if not on_cuda:
        keep_freed_memory()
    name = torch.cuda.get_device_name() if on_cuda else "CPU"
    others = list(other_peers(options)) if on_cuda else []
    for rows, classes in options.shapes:
        size = rows * classes * TYPES[options.dtype].itemsize
        sets = max(1, min(64, -(-(256 << 20) // size))) if on_cuda else 1
        cases = [Case(options, rows, classes) for _ in range(sets)]
        copies = [lambda case=case, to=case.empty(): to.copy_(case.x) for case in cases]
        copy_ms = median_ms(copies, options)
        for op in options.ops:
            passes = OPERATIONS[op][1] + (options.soft_targets and op in LOSSES)
            for peer, prepare in forms(op, others):
                with torch.set_grad_enabled(op in WITH_GRAPH):
                    ms = median_ms([prepare(case) for case in cases], options)
                line = {
                    "peer": peer,
                    "op": op,
                    "rows": rows,
                    "classes": classes,
                    "dtype": options.dtype,
                    "device": name,
                    "threads": None if on_cuda else torch.get_num_threads(),
                    "median_ms": ms,
                    "gb_per_s": size * passes / ms / 1e6,
                    "copy_ms": copy_ms,
                    "copies": ms / copy_ms,
                    "options": described(options),
                }
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
