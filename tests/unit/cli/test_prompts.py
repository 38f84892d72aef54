"""On a terminal, ``--data`` asks for what pictures need."""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

import pytest

pty = pytest.importorskip("pty", reason="needs a pseudo terminal")

DIGITS = Path(__file__).parents[3] / "examples" / "digits"


def talk(arguments: list[str], answers: list[tuple[str, str]]) -> tuple[int, str]:
    """Run on a terminal; each answer is typed once its question is there."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="120")
        os.execv(sys.executable, [sys.executable, "-m", "ptq_core", *arguments])
    shown, waiting, end = "", list(answers), time.monotonic() + 60
    while time.monotonic() < end:
        if waiting and waiting[0][0] in shown:
            question, answer = waiting.pop(0)
            shown = shown.replace(question, "", 1)
            time.sleep(0.3)  # nobody types while the question is still being printed
            os.write(terminal, answer.encode())
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                piece = os.read(terminal, 4096)
            except OSError:  # Linux's end of file
                break
            if not piece:
                break
            shown += piece.decode(errors="replace")
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown


def test_what_is_missing_is_asked_for(tmp_path):
    out = tmp_path / "o.onnx"
    command = ["quantize", str(DIGITS / "digits.onnx"), "--data", str(DIGITS / "calib")]

    code, shown = talk(
        [*command, "-o", str(out), "--calibrate-size", "8", "--std", "127.5"],
        [
            ("mean, for values from 0 to 255", "many\n"),
            ("expected numbers with commas between", ""),
            ("mean, for values from 0 to 255", "127.5\n"),
            ("resize pictures to", "32x32\n"),
        ],
    )

    assert code == 0, shown
    assert "Input 'image' takes [batch, 3, 32, 32]" in shown
    assert "standard deviation" not in shown
    assert "normalize_mean=[127.5, 127.5, 127.5]" in shown
    assert out.exists()


def test_interrupt_at_a_question(tmp_path):
    command = ["quantize", str(DIGITS / "digits.onnx"), "--data", str(DIGITS / "calib")]

    code, shown = talk([*command, "-o", str(tmp_path / "o.onnx")], [("mean, for values", "\x03")])

    assert code == 130
    assert "interrupted; nothing was written" in shown
    assert not list(tmp_path.iterdir())
