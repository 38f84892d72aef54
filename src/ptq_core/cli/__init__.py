"""The command line ``ptq``.

:func:`main` is what runs; nothing heavy is imported before a command needs it, so that
``ptq --help`` is there at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code (see :class:`ptq_core.errors.ExitCode`).

    Args:
        arguments: the words after ``ptq``; those of the process by default.
    """
    if arguments is None:
        arguments = sys.argv[1:]
        _write_any_text()
    try:
        from ptq_core.cli.failures import run

        code = run(list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read our output has seen enough
        _silence_stdout()
        code = 0
    except KeyboardInterrupt:  # so early, or again, that nobody else could take it
        code = 130
    return code


def _write_any_text() -> None:
    """Names that the terminal's encoding lacks are shown escaped instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _silence_stdout() -> None:
    """Let the interpreter's last flush go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
