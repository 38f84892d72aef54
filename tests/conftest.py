"""Plugins installed as real distributions: a package and a dist-info folder on ``sys.path``."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ptq_core.plugins
from ptq_core.plugins import PluginHost, PluginRecord

# Where ptq_core is imported from, for subprocesses, whether or not it is installed.
SOURCE = Path(ptq_core.plugins.__file__).parents[2]

GOOD = """
from ptq_core.api import CalibratorEntry, hookimpl

@hookimpl
def ptq_calibrators():
    yield CalibratorEntry(name="GOOD", summary="behaves", factory=lambda tensor, options: None)
"""


@dataclass(frozen=True)
class Site:
    """A folder on ``sys.path`` to install plugins into."""

    folder: Path

    def install(
        self,
        name: str,
        source: str,
        *,
        version: str = "1.0",
        points: str | None = None,
    ) -> str:
        """Install a distribution of one module; returns the module's name.

        ``points`` are the lines of its entry point group, ``{module}`` stands for the module.
        """
        module = name.replace("-", "_")
        (self.folder / f"{module}.py").write_text(textwrap.dedent(source), encoding="utf-8")
        info = self.folder / f"{module}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8"
        )
        lines = "main = {module}" if points is None else points
        (info / "entry_points.txt").write_text(
            f"[ptq]\n{lines.format(module=module)}\n", encoding="utf-8"
        )
        (info / "RECORD").write_text(f"{module}.py,,\n", encoding="utf-8")
        importlib.invalidate_caches()
        return module

    def record(self, host: PluginHost, name: str) -> PluginRecord:
        """The only record of this distribution."""
        (found,) = (record for record in host.records if record.name == name)
        return found

    def forget(self) -> None:
        """Take modules that were imported from here out of ``sys.modules``."""
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", None) or "").startswith(str(self.folder)):
                del sys.modules[name]

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run Python in a process of its own, with this folder on its path."""
        path = os.pathsep.join([str(self.folder), str(SOURCE)])
        return subprocess.run(
            [sys.executable, *command],
            env={**os.environ, "PYTHONPATH": path, **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An empty site; a well-behaved plugin ``ptq-good`` is installed beside whatever comes."""
    for switch in ("PTQ_DISABLE_PLUGINS", "PTQ_TRACE_PLUGINS"):
        monkeypatch.delenv(switch, raising=False)
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])
    site = Site(folder)
    site.install("ptq-good", GOOD)
    yield site
    site.forget()
