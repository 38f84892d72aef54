"""The tools that are compared: ptq from this environment, each peer from one of its own."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from benchmarks.cases import Case
from benchmarks.measure import Process, run_process

PTQ = "ptq"
PEERS = ("onnxruntime", "nncf", "onnx-neural-compressor")
METHODS = ("MAX_MIN", "KL", "RemovalOutlier", "PERCENTILE", "MSE")

_HERE = Path(__file__).parent
SCRIPTS = _HERE / "peers"
_ENVIRONMENTS = _HERE / "environments"


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """A tool in one of its settings.

    Attributes:
        name: ``ptq`` or a peer.
        setting: a calibration method of ptq, or a setting of the peer's script.
        correction: ptq's bias correction; what peers do is part of their setting.
    """

    name: str
    setting: str
    correction: bool = False

    def __str__(self) -> str:
        return f"{self.name} {self.setting}" + (" + bias correction" if self.correction else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What a tool made: its process, the file, and of ptq the seconds of each stage."""

    process: Process
    file: Path
    seconds: Mapping[str, float]

    @property
    def megabytes(self) -> float:
        """Size of the file, external data included."""
        return sum(part.stat().st_size for part in self.file.parent.iterdir()) / 1e6


def run(tool: Tool, case: Case, work: Path) -> Made:
    """Quantize with this tool; RuntimeError with its complaint if it cannot."""
    inputs = work / case.name / str(tool)
    output = inputs / "output" / "model.onnx"
    shutil.rmtree(output.parent, ignore_errors=True)  # some tools append to external data
    output.parent.mkdir(parents=True)
    if tool.name == PTQ:
        config = inputs / "ptq.toml"
        config.write_text(toml(case, tool.setting, correction=tool.correction))
        files = [str(case.model), "-c", str(config), "-o", str(output), "--json"]
        process = run_process([sys.executable, "-m", "ptq_core", "quantize", *files])
        seconds = json.loads(process.stdout)["seconds"]
        del seconds["total"]
        return Made(process=process, file=output, seconds=seconds)
    samples = inputs / "samples.json"
    samples.write_text(json.dumps(dict(case.data)))
    script = SCRIPTS / f"run_{tool.name}.py"
    files = [str(path.absolute()) for path in (case.model, samples, output)]
    # -Es: nothing of this environment reaches the peer's
    command = [str(environment(tool.name)), "-Es", str(script), *files, tool.setting]
    process = run_process(command)
    return Made(process=process, file=output, seconds={})


def try_out(tool: Tool, case: Case, work: Path) -> None:
    """Run on two samples: fills caches, and RuntimeError tells what is missing."""
    run(tool, replace(case, data={**case.data, "calibrate_size": 2}), work)


def sections(case: Case, method: str, *, correction: bool) -> dict[str, dict]:
    """ptq's config for full quantization."""
    return {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {
            "activation_quant_method": method,
            "bias_correction": correction,
            "target_device": "CPU",
        },
        "data_preprocess_param": dict(case.data),
    }


def toml(case: Case, method: str, *, correction: bool) -> str:
    """The same as a file's text."""
    lines = []
    for section, values in sections(case, method, correction=correction).items():
        # JSON's texts, numbers, lists and booleans are TOML's too
        lines += [f"[{section}]", *(f"{key} = {json.dumps(one)}" for key, one in values.items())]
    return "\n".join(lines) + "\n"


def environment(peer: str) -> Path:
    """The Python of a peer's environment, made at the first use; RuntimeError if that fails."""
    python, reason = _environment(peer)
    if reason:
        raise RuntimeError(reason)
    return python


@cache  # a failure too: an installer takes its time to give up
def _environment(peer: str) -> tuple[Path, str]:
    requirements = SCRIPTS / f"{peer}.txt"
    folder = _ENVIRONMENTS / peer
    python, stamp = folder / "bin" / "python", folder / "stamp"
    wanted = requirements.read_bytes() + platform.python_version().encode()
    wanted_stamp = hashlib.sha256(wanted).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted_stamp:
        return python, ""
    print(f"{peer}: making its environment", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    try:
        run_process([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
        run_process([*pip, "--disable-pip-version-check", "-r", str(requirements)])
    except RuntimeError as error:
        return python, f"cannot be installed: {error}"
    stamp.write_text(wanted_stamp)
    return python, ""
