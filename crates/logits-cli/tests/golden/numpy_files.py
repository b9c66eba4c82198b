#!/usr/bin/env python3
"""Writes numpy_files.json beside itself: .npy files of every kind that `logits loss` reads, as numpy writes them, for ../command_line/npy.rs.

    pip install numpy==2.4.6 && python3 crates/logits-cli/tests/golden/numpy_files.py

The logits [2, 3, 2, 2] are arange(24) * 7 % 11, the targets [2, 2, 2] are arange(8) % 3.
"""

import io
import json
import pathlib

import numpy as np

logits = (np.arange(24) * 7 % 11).reshape(2, 3, 2, 2)
targets = (np.arange(8) % 3).reshape(2, 2, 2)


def file_of(array, version):
    out = io.BytesIO()
    np.lib.format.write_array(out, array, version=version)
    return out.getvalue().hex()


def files_of(array, codes):
    for nth, code in enumerate(codes):
        for order in "CF":
            # The three versions in turn; only the length of their header and its encoding differ.
            version = ((1, 0), (2, 0), (3, 0))[nth % 3]
            name = f"{code} {order} version {version[0]}"
            yield {"name": name, "hex": file_of(np.asarray(array.astype(code), order=order), version)}


cases = {
    "numpy": np.__version__,
    "logits": list(files_of(logits, ["<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])),
    "targets": list(files_of(targets, [f"{end}{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8) for end in "<>"])),
    # The first 128 bytes, in hex.
    "gradient_header": file_of(np.zeros((2, 3, 2, 2), "<f4"), (1, 0))[: 2 * 128],
}
pathlib.Path(__file__).with_suffix(".json").write_text(json.dumps(cases, indent=1) + "\n")
