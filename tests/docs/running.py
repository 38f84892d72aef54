"""Runs the blocks of a page in a folder of its own, as a reader would.

Importing takes most of the time of a short command. So Python, and bash that only calls ``ptq``,
run in processes that are forked from one that has imported everything; all other bash is bash.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.docs.pages import ROOT, Block, blocks

_EXAMPLE = ROOT / "examples" / "digits"
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(["ptq_core.jobs", "ptq_core.cli.app", "onnxruntime", "cv2", "rich"])
_SHELL = set("|&;<>()$`\\*?#~=%\n")  # beyond quotes: what makes a line more than words
_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")


class Reader:
    """Follows a page: a copy of examples/digits, and what the page installs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "digits"
        shutil.copytree(_EXAMPLE, self.folder, ignore=shutil.ignore_patterns("out", "__pycache__"))
        self._site = folder / "site"
        self._site.mkdir()
        self._path = [str(self._site)]

    def follow(self, page: Path) -> None:
        """Do what the page says; AssertionError where it does not happen as told."""
        output = None
        for block in blocks(page):
            match block.action:
                case "run":
                    output = self._run(block)
                    continue
                case "file":
                    target = self.folder / block.argument
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_text(block.text, encoding="utf-8")
                case "install":
                    self._install(self.folder / block.argument)
                case _ if block.language == "text" and output is not None:
                    _compare(block, output)
            output = None

    def _run(self, block: Block) -> str:
        expected = int(block.argument.removeprefix("exit ") or 0)
        calls = _ptq_calls(block)
        if block.language == "python" or calls:
            code, output = self._fork(block.text if not calls else "", calls)
        else:
            code, output = self._bash(block.text)
        assert code == expected, f"{block}: exit {code}\n{output}"
        return output

    def _bash(self, text: str) -> tuple[int, str]:
        scripts = str(Path(sys.executable).parent)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", text],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
                "PYTHONPATH": os.pathsep.join(self._path),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stdout

    def _fork(self, program: str, calls: list[list[str]]) -> tuple[int, str]:
        log = self.folder.parent / "log.txt"
        process = _FORKS.Process(target=_work, args=(self.folder, self._path, log, program, calls))
        process.start()
        process.join(60)
        assert process.exitcode is not None, "it does not end"
        return process.exitcode, log.read_text(encoding="utf-8")

    def _install(self, folder: Path) -> None:
        """What `pip install -e` leaves behind, without an index: metadata, and a path."""
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name, version = project["name"], project["version"]
        info = self._site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        points = [
            f"[ptq]\n{key} = {value}\n" for key, value in project["entry-points"]["ptq"].items()
        ]
        (info / "entry_points.txt").write_text("".join(points), encoding="utf-8")
        source = folder / "src"
        self._path.append(str(source if source.is_dir() else folder))


def _ptq_calls(block: Block) -> list[list[str]]:
    """The words of each line, if the block is bash and does nothing but call ``ptq``."""
    lines = block.text.splitlines()
    if block.language != "bash" or not all(line.startswith("ptq ") for line in lines):
        return []
    bare = re.sub(r"'[^']*'", "", block.text.strip())
    if _SHELL & set(bare.replace("\n", "")):
        return []
    return [shlex.split(line)[1:] for line in lines]


def _work(folder: Path, path: list[str], log: Path, program: str, calls: list[list[str]]) -> None:
    """What the forked process does; its exit code is the program's, or the first that is not 0."""
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(folder)
    sys.path[:0] = [str(folder), *path]
    sys.stdout = open(1, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", closefd=False)  # noqa: SIM115
    code = 0
    if program:
        exec(compile(program, "block", "exec"), {"__name__": "__main__"})  # the page's own program
    for words in calls:
        from ptq_core.cli import main

        code = code or main(words)
    sys.stdout.flush()
    sys.exit(code)


def _compare(block: Block, output: str) -> None:
    """Whether the lines shown are lines of the output, in order, whatever the numbers."""
    found = [_shape(line) for line in output.splitlines()]
    position = 0
    for line in block.text.splitlines():
        shown = _shape(line)
        if shown in ("", "…"):
            continue
        pattern = re.compile(".*".join(map(re.escape, shown.split("…"))))
        rest = range(position, len(found))
        position = next((i + 1 for i in rest if pattern.fullmatch(found[i])), 0)
        assert position, f"{block}: not in the output: {line}\n\n{output}"


def _shape(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())
