"""``python -m benchmarks``: measure, print tables, keep the numbers; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, example, listed, own
from benchmarks.measure import Row, table
from benchmarks.suite import BENCHMARKS

_RESULTS = Path(__file__).parent / "results" / "latest.json"
_VERSIONS = ("ptq-core", "onnxruntime", "onnx", "numpy", "opencv-python-headless")


def main() -> int:
    given = _arguments()
    results: dict[str, list[Row]] = {}
    with tempfile.TemporaryDirectory(prefix="ptq-benchmarks-") as folder:
        cases = _cases(given, Path(folder))
        for name in given.names or BENCHMARKS:
            print(f"\n## {name}\n", flush=True)
            rows: list[Row] = []
            for case in cases:
                print(f"{name}: {case.name}", file=sys.stderr, flush=True)
                try:
                    rows += BENCHMARKS[name](case, Path(folder), given.rounds)
                except RuntimeError as error:  # of a process, ours or the peer's
                    print(f"{case.name}: no {name}: {error}", file=sys.stderr)
            print(table(rows), flush=True)
            results[name] = rows
    _RESULTS.parent.mkdir(exist_ok=True)
    _RESULTS.write_text(json.dumps({"machine": _machine(), "results": results}, indent=2) + "\n")
    print(f"\nwrote {os.path.relpath(_RESULTS)}", file=sys.stderr)
    return 0


def _cases(given: argparse.Namespace, work: Path) -> list[Case]:
    if given.model:
        return [own(given.model, given.config, given.eval)]
    if not (given.models / "models.json").exists():
        print(f"no {given.models / 'models.json'}: only the example is measured", file=sys.stderr)
        return [example()]
    cases = list(listed(given.models, given.data, work))
    chosen = [case for case in cases if not given.case or case.name in given.case]
    if not chosen:
        sys.exit(f"--case: there are {', '.join(case.name for case in cases)}")
    return chosen


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"), metavar="DIR")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR")
    parser.add_argument("--case", action="append", help="only this model of --models; repeatable")
    ours = parser.add_argument_group("your own classifier of pictures, instead of --models")
    ours.add_argument("--model", type=Path, metavar="ONNX")
    ours.add_argument("--config", type=Path, help="how ptq quantizes it: [data_preprocess_param]")
    ours.add_argument("--eval", type=Path, metavar="DIR", help="pictures, and labels.csv if any")
    given = parser.parse_args()
    if given.model and not (given.config and given.eval):
        parser.error("--model needs --config and --eval")
    if unknown := set(given.names) - set(BENCHMARKS):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    return given


def _machine() -> dict[str, Any]:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.split(":")[1] for line in lines if line.startswith("model name")), "")
    return {
        "processor": model.strip() or platform.processor(),
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in _VERSIONS},
    }


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
