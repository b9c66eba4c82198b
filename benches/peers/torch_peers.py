"""Times PyTorch and, on CUDA, torch.compile, Liger and QuACK where they are installed: softmax, loss, loss with gradient.

One JSON object a line, beside a plain copy of the same logits on the same device in the same run. On CUDA each run takes the
next of several inputs, so that no cache holds it, and is timed by the device's events.
"""

import argparse
import json
import statistics
import time

import torch
import torch.nn.functional as F

SHAPES = ["262144x10", "65536x100", "16384x1000", "1024x32000", "256x128256", "8x262144"]
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def peers(on_cuda):
    yield "torch", lambda x: F.softmax(x, 1), F.cross_entropy
    if not on_cuda:
        return
    yield "torch.compile", torch.compile(lambda x: F.softmax(x, 1)), torch.compile(F.cross_entropy)
    try:
        from liger_kernel.transformers.functional import liger_cross_entropy, liger_softmax

        yield "liger", liger_softmax, liger_cross_entropy
    except ImportError as missing:
        print(json.dumps({"peer": "liger", "skipped": str(missing)}))
    try:
        import quack

        yield "quack", quack.softmax, lambda x, y: quack.cross_entropy(x, y, reduction="mean")
    except ImportError as missing:
        print(json.dumps({"peer": "quack", "skipped": str(missing)}))


def median_ms(run, inputs, on_cuda, runs):
    for nth in range(3):
        run(inputs[nth % len(inputs)])
    times = []
    for nth in range(runs):
        given = inputs[nth % len(inputs)]
        if on_cuda:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            events[0].record()
            run(given)
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]))
        else:
            start = time.perf_counter()
            run(given)
            times.append((time.perf_counter() - start) * 1e3)
    return statistics.median(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=TYPES, default="f32")
    parser.add_argument("--shapes", nargs="*", default=SHAPES)
    parser.add_argument("--runs", type=int, default=21)
    arguments = parser.parse_args()
    on_cuda = arguments.device == "cuda"
    name = torch.cuda.get_device_name() if on_cuda else "CPU"
    for shape in arguments.shapes:
        rows, classes = map(int, shape.split("x"))
        dtype = TYPES[arguments.dtype]
        size = rows * classes * dtype.itemsize
        sets = max(1, min(64, -(-(256 << 20) // size))) if on_cuda else 1
        inputs = []
        for _ in range(sets):
            x = torch.empty(rows, classes, device=arguments.device).uniform_(-8, 8).to(dtype)
            inputs.append((x, torch.empty_like(x), x.clone().requires_grad_()))
        y = torch.randint(0, classes, (rows,), device=arguments.device)
        copy_ms = median_ms(lambda given: given[1].copy_(given[0]), inputs, on_cuda, arguments.runs)
        for peer, softmax, cross_entropy in peers(on_cuda):

            def gradient(given):
                given[2].grad = None
                cross_entropy(given[2], y).backward()

            for op, run, passes in [
                ("softmax", lambda given: softmax(given[0]), 2),
                ("cross_entropy", lambda given: cross_entropy(given[0], y), 1),
                ("cross_entropy_grad", gradient, 2),
            ]:
                ms = median_ms(run, inputs, on_cuda, arguments.runs)
                print(
                    json.dumps(
                        {
                            "peer": peer,
                            "op": op,
                            "rows": rows,
                            "classes": classes,
                            "dtype": arguments.dtype,
                            "device": name,
                            "median_ms": ms,
                            "gb_per_s": size * passes / ms / 1e6,
                            "copy_ms": copy_ms,
                            "copies": ms / copy_ms,
                        }
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
