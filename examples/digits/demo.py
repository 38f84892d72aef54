"""Quantizes digits.onnx with ptq's command line and shows what was gained: `make demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from evaluate import HERE, latencies, load_eval, open_model, predict

FLOAT = HERE / "digits.onnx"
INT8 = HERE / "out" / "digits_int8.onnx"


def main() -> int:
    """Quantize, measure, print; returns the exit code of ptq if it failed."""
    INT8.parent.mkdir(exist_ok=True)
    model, config, output = (
        os.path.relpath(path) for path in (FLOAT, HERE / "full_quant.cfg", INT8)
    )
    arguments = ["quantize", model, "-c", config, "-o", output]
    print("$ ptq", *arguments, flush=True)
    code = subprocess.run([sys.executable, "-m", "ptq_core", *arguments], check=False).returncode
    if code:
        print(f"demo: ptq failed with exit code {code}; its message is above", file=sys.stderr)
        return code
    print()
    compare(FLOAT, INT8)
    return 0


def compare(float_path: Path, int8_path: Path) -> None:
    """Print size, accuracy and latency of both files."""
    pictures, truth = load_eval()
    paths = (float_path, int8_path)
    models = [open_model(path) for path in paths]
    before, after = (predict(model, pictures) for model in models)
    sizes = [path.stat().st_size / 1000 for path in paths]
    accuracies = [100 * float((digits == truth).mean()) for digits in (before, after)]
    times = latencies(models, pictures[:1])

    row = "{:<26}{:>12}{:>12}   {}".format
    print(row(f"{len(truth)} pictures of eval/", "float32", "int8", ""))
    print(
        row("file size", *(f"{size:.0f} kB" for size in sizes), f"{sizes[0] / sizes[1]:.2f}x less")
    )
    print(
        row(
            "accuracy (top-1)",
            *(f"{accuracy:.2f}%" for accuracy in accuracies),
            f"{accuracies[1] - accuracies[0]:+.2f} points",
        )
    )
    print(row("same answer as float32", "", f"{100 * (before == after).mean():.2f}%", ""))
    print(
        row(
            "latency, 1 thread, batch 1",
            *(f"{milliseconds:.3f} ms" for milliseconds in times),
            f"{times[0] / times[1]:.2f}x as fast",
        )
    )
    print(f"\nfloat32  {os.path.relpath(float_path)}\nint8     {os.path.relpath(int8_path)}")


if __name__ == "__main__":
    sys.exit(main())
