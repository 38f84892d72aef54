"""Runs the blocks of a page in a folder of its own, as a reader would."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.docs.pages import ROOT, Block, blocks

_EXAMPLE = ROOT / "examples" / "digits"
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
        bash = ["bash", "-euo", "pipefail", "-c"]
        command = bash if block.language == "bash" else [sys.executable, "-W", "error", "-c"]
        scripts = str(Path(sys.executable).parent)
        done = subprocess.run(
            [*command, block.text],
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": os.pathsep.join([scripts, os.environ.get("PATH", "")]),
                "PYTHONPATH": os.pathsep.join(self._path),
                "COLUMNS": "200",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == expected, f"{block}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def _install(self, folder: Path) -> None:
        """What `pip install -e` leaves behind, without an index: metadata, and a path."""
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        name, version = project["name"], project["version"]
        info = self._site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata, encoding="utf-8")
        points = [f"[ptq]\n{key} = {value}\n" for key, value in project["entry-points"]["ptq"].items()]
        (info / "entry_points.txt").write_text("".join(points), encoding="utf-8")
        source = folder / "src"
        self._path.append(str(source if source.is_dir() else folder))


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
