"""Run a job and show what came of it; shared by `ptq quantize` and `ptq converter_lite`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ptq_core.errors import ExitCode

if TYPE_CHECKING:
    from ptq_core.cli.state import State
    from ptq_core.config import Config
    from ptq_core.jobs import Settings


def run_job(
    state: State,
    model: Path,
    output: Path,
    config: Config,
    settings: Settings,
    *,
    calibration: Path | None = None,
    notes: Sequence[str] = (),
    warnings: Sequence[str] = (),
    shown_config: str | None = None,
) -> ExitCode:
    """Do what the config asks for, print the report, and return DONE or GATE_MISSED.

    Args:
        state: of the command line.
        model: the float model.
        output: the file to write.
        config: the job.
        settings: the rest.
        calibration: a table with the ranges, instead of samples.
        notes: of the command line, for the report.
        warnings: likewise.
        shown_config: the command line as a config, where there was none.

    Raises:
        PtqError: see :func:`ptq_core.jobs.run`.
    """
    from ptq_core.cli.progress import showing
    from ptq_core.cli.report import log_ranges, print_missed, print_report, report_json
    from ptq_core.jobs import run

    host = state.host
    with showing(state) as emit:
        report = run(
            model, output, config, host, calibration=calibration, settings=settings, emit=emit
        )
    report.notes[:0] = notes
    report.warnings[:0] = [*warnings, *host.warnings]
    log_ranges(report)
    code = ExitCode.DONE if report.passed and report.accepted else ExitCode.GATE_MISSED
    if state.json:
        given = {} if shown_config is None else {"config": shown_config}
        state.print_json({**report_json(report), **given, "exit_code": int(code)})
    else:
        print_report(state.out, report, every=state.verbose > 0)
    if not report.passed:
        used = config.full.activation_quant_method if config.full is not None else None
        names = [one.entry.name for one in host.entries("calibrator") if used is not None]
        others = [name for name in names if name.casefold() != (used or "").casefold()]
        print_missed(state.err, report, others)
    return code
