"""Find plugins: those inside core, then the entry points of group ``ptq``, in a fixed order."""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from ptq_core.errors import InputError, Problem, did_you_mean
from ptq_core.plugins.admission import Hooks, admit, describe
from ptq_core.plugins.host import PluginHost
from ptq_core.plugins.records import Kind, PluginRecord, State, folded, spellings

GROUP = "ptq"

# The plugins inside core. They are imported by name and travel the same road as a stranger's.
BUILT_IN = (
    "ptq_core.builtins.arrays",
    "ptq_core.builtins.plain_encoding",
    "ptq_core.builtins.reference_runner",
)

_CORE = "ptq-core"
_ALL = "all"
_SECTION = re.compile(rf"^\s*\[{GROUP}\]\s*$", re.MULTILINE)
_SWITCH = "PTQ_DISABLE_PLUGINS"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A plugin that was found; ``load`` imports it."""

    record: PluginRecord
    load: Callable[[], object]


def discover(*, disabled: Collection[str] = (), autoload: bool = True) -> PluginHost:
    """Load what is installed, one plugin at a time, by distribution and then by entry point.

    The environment variable ``PTQ_DISABLE_PLUGINS`` (names with commas between, or ``all`` for
    everything that does not ship inside core) switches plugins off as ``disabled`` does; a name
    in it that is not installed becomes one of the host's warnings.

    Args:
        disabled: names of distributions or entry points; case does not count, nor ``-`` or ``_``.
        autoload: False leaves out everything that does not ship inside core.

    Raises:
        InputError: ``disabled`` names a plugin that is not installed.
    """
    found = [*_built_in(), *_installed()]
    by_environment = [name for name in os.environ.get(_SWITCH, "").split(",") if name.strip()]
    _refuse_unknown(disabled, found)
    reasons = {folded(name): f"switched off by {_SWITCH}" for name in by_environment}
    reasons |= {folded(name): "switched off by --no-plugin" for name in disabled}
    if not autoload:
        reasons[_ALL] = "switched off by --no-plugins"
    host = _make([_switched(plugin, reasons) for plugin in found])
    for name in by_environment:
        if folded(name) not in {_ALL, *_switches(found)}:
            host.warnings.append(f"{_SWITCH} names '{name.strip()}', which is not installed")
    return host


def make_host(plugins: Mapping[str, object]) -> PluginHost:
    """A host of given plugins (modules or objects with hooks, by name), without discovery."""
    return _make(
        [
            _Found(
                record=PluginRecord(
                    name=name,
                    entry_point=name,
                    version=str(getattr(plugin, "__version__", "0")),
                    module=getattr(plugin, "__name__", type(plugin).__name__),
                ),
                load=partial(_same, plugin),
            )
            for name, plugin in plugins.items()
        ]
    )


def _same(plugin: object) -> object:
    return plugin


def _make(found: list[_Found]) -> PluginHost:
    loaded: list[tuple[PluginRecord, Hooks | None]] = []
    # Entry points of one distribution share its name, so they may not offer one name twice.
    taken: dict[str, set[tuple[Kind, str]]] = {}
    for plugin in found:
        if plugin.record.state is not State.ACTIVE:
            loaded.append((plugin.record, None))
            continue
        others = taken.setdefault(folded(plugin.record.name), set())
        record, hooks = admit(plugin.record, plugin.load, others)
        others |= {
            (kind, name)
            for kind, entries in record.entries.items()
            for entry in entries
            for name in spellings(entry)
        }
        loaded.append((record, hooks))
    return PluginHost(loaded)


# ----------------------------------------------------------------------------------- finding


def _built_in() -> Iterator[_Found]:
    version = _core_version()
    for module in BUILT_IN:
        record = PluginRecord(
            name=_CORE,
            entry_point=module.rpartition(".")[2],
            version=version,
            module=module,
            built_in=True,
        )
        yield _Found(record=record, load=partial(importlib.import_module, module))


def _core_version() -> str:
    try:
        return metadata.version(_CORE)
    except metadata.PackageNotFoundError:  # run from a source tree that is not installed
        return "0"


def _installed() -> list[_Found]:
    """The plugins of all distributions; of two copies on sys.path the first counts."""
    found: dict[str, list[_Found]] = {}
    for distribution in metadata.distributions():
        plugins = list(_of(distribution))
        if plugins:
            found.setdefault(folded(plugins[0].record.name), plugins)
    return [
        plugin
        for name in sorted(found)
        for plugin in sorted(found[name], key=lambda plugin: plugin.record.entry_point)
    ]


def _of(distribution: metadata.Distribution) -> Iterator[_Found]:
    # Not metadata.entry_points(): it parses the file of every installed package, and one that
    # cannot be parsed would take all plugins away.
    location = str(distribution.locate_file(""))
    try:
        if not _SECTION.search(distribution.read_text("entry_points.txt") or ""):
            return
        name, version = distribution.metadata["Name"], str(distribution.version)
        if not name:
            raise ValueError("METADATA names no distribution")
        points = list(distribution.entry_points.select(group=GROUP))
    except Exception as error:  # noqa: BLE001 - the boundary: metadata is a stranger's too
        yield _Found(
            record=PluginRecord(
                name=_folder_name(distribution),
                entry_point="",
                version="",
                location=location,
                state=State.BROKEN,
                error=f"its metadata cannot be read: {describe(error)}",
                exception=error,
            ),
            load=partial(_same, None),
        )
        return
    for point in points:
        record = PluginRecord(
            name=name,
            entry_point=point.name,
            version=version,
            module=point.value,
            location=location,
        )
        yield _Found(record=record, load=point.load)


def _folder_name(distribution: metadata.Distribution) -> str:
    # The last resort where METADATA is of no use; there is no public way to the folder's name.
    return Path(str(getattr(distribution, "_path", "unknown"))).name.partition("-")[0]


# -------------------------------------------------------------------------------- off-switches


def _switched(plugin: _Found, reasons: Mapping[str, str]) -> _Found:
    record = plugin.record
    names = [folded(record.entry_point), folded(record.name)]
    if not record.built_in:
        names.append(_ALL)
    reason = next((reasons[name] for name in names if name in reasons), None)
    if reason is None:
        return plugin
    return replace(plugin, record=replace(record, state=State.DISABLED, error=reason))


def _switches(found: list[_Found]) -> set[str]:
    return {
        name
        for plugin in found
        for name in (folded(plugin.record.name), folded(plugin.record.entry_point))
    }


def _refuse_unknown(disabled: Collection[str], found: list[_Found]) -> None:
    known = _switches(found)
    problems = [
        Problem(
            message=f"--no-plugin {name}: no such plugin is installed",
            hint=did_you_mean(folded(name), sorted(known)),
        )
        for name in disabled
        if folded(name) not in {_ALL, *known}
    ]
    if problems:
        raise InputError(problems=problems)
