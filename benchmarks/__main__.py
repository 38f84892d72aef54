"""``python -m benchmarks``: measure, print tables, keep the numbers; see README.md."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import archive, comparison, devices, dynamic, forms, htp, suite, weights
from benchmarks.cases import Case, example, listed, own
from benchmarks.measure import Row, table
from benchmarks.suite import Options
from benchmarks.tools import METHODS, PEERS, PTQ

_RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("ptq-core", "onnxruntime", "onnx", "numpy", "opencv-python-headless")

BENCHMARKS: Mapping[str, Callable[[Case, Options], list[Row]]] = {
    "calibration": suite.calibration,
    "stages": suite.stages,
    "process": suite.process,
    "memory": suite.memory,
    "latency": suite.latency,
    "accuracy": suite.accuracy,
    "weights": weights.weights,
    "archive": archive.archive,
    "dynamic": dynamic.dynamic,
    "devices": devices.devices,
    "htp": htp.htp,
    "peers": comparison.peers,
}
_ONLY_BY_NAME = {  # they take long
    "stages", "weights", "archive", "dynamic", "devices", "htp", "peers",
}  # fmt: skip
_ROUNDS = {"peers": 3}
_OTHER_ROUNDS = 5


def main() -> int:
    given = _arguments()
    machine = _machine()
    print(", ".join(f"{name} {value}" for name, value in _flat(machine)))
    if given.forms:
        rows = forms.forms(given.rounds or _OTHER_ROUNDS)
        _keep("forms", machine, rows)
        print(f"\n## forms\n\n{table(rows)}", flush=True)
        return 0
    with tempfile.TemporaryDirectory(prefix="ptq-benchmarks-") as folder:
        work = Path(folder)
        cases = _cases(given, work)
        for name in given.names or [one for one in BENCHMARKS if one not in _ONLY_BY_NAME]:
            print(f"\n## {name}\n", flush=True)
            options = Options(
                work=work,
                rounds=given.rounds or _ROUNDS.get(name, _OTHER_ROUNDS),
                methods=tuple(given.method or ()),
                tools=tuple(given.peer or ()),
            )
            rows = []
            for case in cases:
                print(f"{name}: {case.name}", file=sys.stderr, flush=True)
                try:
                    rows += BENCHMARKS[name](case, options)
                except RuntimeError as error:  # of a process, ours or the peer's
                    print(f"{case.name}: no {name}: {error}", file=sys.stderr)
                _keep(name, machine, rows)  # what is there, should the rest be interrupted
            print(table(rows), flush=True)
    return 0


def _keep(name: str, machine: Mapping[str, Any], rows: Sequence[Row]) -> None:
    _RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"machine": machine, "rows": rows}, indent=2)
    (_RESULTS / f"{name}.json").write_text(text + "\n")


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
    parser.add_argument("--rounds", type=int, help="of measuring; by default 5, of peers 3")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"), metavar="DIR")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), metavar="DIR")
    parser.add_argument("--case", action="append", help="only this model of --models; repeatable")
    parser.add_argument("--method", action="append", help=f"of {', '.join(METHODS)}; repeatable")
    parser.add_argument(
        "--peer", action="append", choices=(PTQ, *PEERS), help="peers: only this; repeatable"
    )
    parser.add_argument(
        "--forms", action="store_true", help="dynamic: single layers in several forms, no models"
    )
    ours = parser.add_argument_group("your own classifier of pictures, instead of --models")
    ours.add_argument("--model", type=Path, metavar="ONNX")
    ours.add_argument("--config", type=Path, help="how ptq quantizes it: [data_preprocess_param]")
    ours.add_argument("--eval", type=Path, metavar="DIR", help="pictures, and labels.csv if any")
    given = parser.parse_args()
    if given.model and not (given.config and given.eval):
        parser.error("--model needs --config and --eval")
    if given.forms and given.names != ["dynamic"]:
        parser.error("--forms is for dynamic")
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


def _flat(facts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in facts.items():
        yield from _flat(value) if isinstance(value, Mapping) else [(name, value)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
