"""The boundary: whatever happens in a command becomes a message and an exit code here."""

from __future__ import annotations

import contextlib
import sys
import traceback
from pathlib import Path
from typing import Any

import typer

from ptq_core.cli.state import State
from ptq_core.errors import ExitCode, InputError, Problem, PtqError

# The classes behind typer's errors; click's own where typer stands on click.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

_PACKAGE = Path(__file__).parents[1]


def run(arguments: list[str]) -> int:
    """Run the command that the arguments name and return its exit code; never raises an error."""
    # known before anything is parsed, for errors in parsing are told as JSON too
    state = State(json="--json" in arguments)
    try:
        return _invoke(arguments, state)
    except typer.Exit as done:
        return done.exit_code
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted(state)
    except BrokenPipeError:
        raise
    except PtqError as error:
        return _problems(state, error)
    except _UsageError as error:
        return _problems(state, _usage(error))
    except OSError as error:  # no space left, no permission: the system's word, not our defect
        return _problems(state, _system(error), error)
    except Exception as error:  # noqa: BLE001 - the last boundary: a crash is told, not dumped
        return _crash(state, error)


def _invoke(arguments: list[str], state: State) -> int:
    from ptq_core.cli.app import root

    # what plugins and libraries print must not get between the reader and the JSON
    redirected = contextlib.redirect_stdout(sys.stderr) if state.json else contextlib.nullcontext()
    # not root.main(): it has an exit code of its own for interrupts and swallows closed pipes
    with redirected, root().make_context("ptq", arguments, obj=state) as context:
        code = context.command.invoke(context)
    return int(code or 0)


def _usage(error: Any) -> InputError:
    context = getattr(error, "ctx", None)
    hint = f"see {context.command_path} --help" if context is not None else ""
    return InputError(error.format_message(), hint=hint)


def _system(error: OSError) -> InputError:
    named = f": '{error.filename}'" if error.filename is not None else ""
    return InputError(f"{error.strerror or error}{named}", hint="with -v: where it happened")


def _interrupted(state: State) -> int:
    if sys.stderr.isatty():
        sys.stderr.write("\n")  # the cursor stands behind ^C, or behind a question
    written = "the result had been written" if state.saved else "nothing was written"
    _tell(state, ExitCode.INTERRUPTED, "interrupted", (Problem(message=f"interrupted; {written}"),))
    return ExitCode.INTERRUPTED


def _problems(state: State, error: PtqError, cause: BaseException | None = None) -> int:
    _tell(state, error.exit_code, error.code, error.problems)
    cause = cause or error.__cause__
    if state.verbose and cause is not None:
        traceback.print_exception(cause, file=sys.stderr)
    return error.exit_code


def _crash(state: State, error: Exception) -> int:
    hint = "this is a defect of ptq, please report it with this message"
    host = state.__dict__.get("host")  # not asked for where it was never made
    if host is not None and any(r.entries and not r.built_in for r in host.records):
        hint += "; if a plugin may be the cause, try --no-plugins"
    if not state.verbose:
        hint += "; -v shows the traceback"
    text = f"internal error: {type(error).__name__}: {error} ({_place(error)})"
    _tell(state, ExitCode.INTERNAL, "internal", (Problem(message=text, hint=hint),))
    if state.verbose:
        traceback.print_exception(error, file=sys.stderr)
    return ExitCode.INTERNAL


def _place(error: BaseException) -> str:
    """File and line of the innermost frame of ptq."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents]
    frame = (ours or list(frames))[-1]
    return f"{frame.filename}:{frame.lineno}"


def _tell(state: State, code: ExitCode, name: str, problems: tuple[Problem, ...]) -> None:
    if state.json:
        found = [_as_json(problem) for problem in problems]
        state.print_json({"error": {"code": name, "problems": found}, "exit_code": int(code)})
    # without rich, which may not be there yet, or be what failed
    if len(problems) > 1:
        sys.stderr.write(f"{len(problems)} problems:\n")
    label = f"error {name}: " if name.startswith("PTQ") else ""
    if label and sys.stderr.isatty():
        label = f"\x1b[1;31m{label}\x1b[0m"
    for problem in problems:
        sys.stderr.write(f"{label}{problem}\n")
    sys.stderr.flush()


def _as_json(problem: Problem) -> dict[str, Any]:
    where = problem.location
    return {
        "message": problem.message,
        "hint": problem.hint,
        "file": where.file,
        "line": where.line,
        "section": where.section,
        "node": where.node,
        "tensor": where.tensor,
    }
