"""The command line in this process."""

from __future__ import annotations

import pytest

from ptq_core.cli import main
from tests.command_line import Done, Ptq


@pytest.fixture
def ptq(capsys: pytest.CaptureFixture[str]) -> Ptq:
    """Runs a command line in this process."""

    def run(*arguments: object) -> Done:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return Done(code, captured.out, captured.err)

    return run
