"""Every target on a case: what becomes integer, what its own rules say, and how close it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import onnx

from benchmarks.cases import Case
from benchmarks.judge import feeds, figures_of, labels_of, open_model
from benchmarks.measure import LEFT_OUT, Row
from benchmarks.samples import Feeds
from benchmarks.suite import Options
from benchmarks.tools import sections
from ptq_core import quantize
from ptq_core.errors import PtqError
from ptq_core.jobs import Report, Settings
from tests import htp as library

TARGETS = ("CPU", "NVGPU", "DSP", "ASCEND")
_ORACLE_SAMPLES = 4
_EMBEDDING = "sentence_embedding"


def devices(case: Case, options: Options) -> list[Row]:
    """The case on each of our targets: MAX_MIN or ``--method``, with bias correction."""
    method = (options.methods or ("MAX_MIN",))[0]
    return [row for target in TARGETS for row in _on(target, case, method, options.work)]


def _on(target: str, case: Case, method: str, work: Path) -> Iterator[Row]:
    config = sections(case, method, correction=True)
    config["full_quant_param"]["target_device"] = target
    output = work / f"{case.name}.{target}.onnx"
    row: Row = {"model": case.name, "target": target}
    try:
        # the shapes of one sample: what DSP demands of models that leave their batch open
        report = quantize(case.model, output, config=config, settings=_settings(case))
    except PtqError as error:
        yield {**row, LEFT_OUT: str(error).splitlines()[0]}
        return
    plan = report.plan
    found = Counter(one.severity for one in report.findings)
    row |= {
        "integer": plan.count("integer"),
        "float": plan.count("float") + plan.count("guarded"),
        "check": "clean" if not found else ", ".join(f"{n} {name}s" for name, n in found.items()),
        "x smaller": report.bytes_before / report.bytes_after,
    }
    row |= _closeness(case, output, target)
    row["oracle"] = _ORACLES[target](case, output, report)
    yield row


def _settings(case: Case) -> Settings:
    session = open_model(case.model, 0)
    sample = next(feeds(case.data, session))
    opened = {
        one.name: sample[one.name].shape
        for one in session.get_inputs()
        if any(not isinstance(dim, int) for dim in one.shape)
    }
    return Settings(input_shapes=opened)


def _closeness(case: Case, path: Path, target: str) -> Row:
    """Of the first output, or of a text's embedding, over the evaluation samples."""
    before = open_model(case.model, 0)
    after = open_model(path, 0) if target == "CPU" else library.open_reference(path)
    names = [one.name for one in before.get_outputs()]
    name = _EMBEDDING if _EMBEDDING in names else names[0]
    pairs = [
        (before.run([name], sample)[0], after.run([name], sample)[0])
        for sample in feeds(case.evaluation, before)
    ]
    wanted, found = ([pair[side] for pair in pairs] for side in (0, 1))
    return dict(figures_of(wanted, found, case.classifier, labels_of(case)))


# ------------------------------------------------------------------------------------- oracles


def _cpu(case: Case, path: Path, report: Report) -> str:
    """That onnxruntime runs in integers what was planned so."""
    found = report.verification
    unexpected = 0 if found is None else len(found.unexpected)
    return f"{unexpected} planned integer operators run in float"


def _ascend(case: Case, path: Path, report: Report) -> str:
    """That the deploy file computes the same as the file with Q/DQ."""
    from ptq_target_ascend.reference import runnable

    deploy = onnx.load(path.with_name(f"{path.stem}_deploy.onnx"))
    before, after = (
        library.open_reference(path),
        library.open_reference(runnable(deploy).SerializeToString()),
    )
    differences = [
        np.abs(one.astype(np.float64) - other).max() / np.abs(one).max()
        for sample in _samples(case)
        for one, other in zip(before.run(None, sample), after.run(None, sample), strict=True)
    ]
    return f"deploy file: median {np.median(differences):.1e}, worst {max(differences):.1e} off"


def _dsp(case: Case, path: Path, report: Report) -> str:
    """That all of it runs on the HTP library, and gives the same; more of it: benchmark htp."""
    if missing := library.missing():
        return missing
    try:
        device = library.open_htp(path)
    except Exception as error:  # noqa: BLE001 - onnxruntime's exceptions have no base of their own
        return f"a strict session fails: {str(error).splitlines()[0][:80]}"
    before = library.open_reference(path)
    pairs = [
        (before.run(None, sample)[0], device.run(None, sample)[0]) for sample in _samples(case)
    ]
    wanted, found = ([pair[side] for pair in pairs] for side in (0, 1))
    cosine = figures_of(wanted, found, False, None)["cosine"]
    return f"every node on the HTP library, cosine {cosine} with the file"


def _none(case: Case, path: Path, report: Report) -> str:
    return "none here: rules only"


_ORACLES: dict[str, Callable[[Case, Path, Report], str]] = {
    "CPU": _cpu,
    "NVGPU": _none,
    "DSP": _dsp,
    "ASCEND": _ascend,
}


def _samples(case: Case) -> Iterator[Feeds]:
    return islice(feeds(case.evaluation, open_model(case.model, 0)), _ORACLE_SAMPLES)
