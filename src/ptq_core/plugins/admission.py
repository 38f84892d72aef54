"""One plugin through the door: import it, check its API version, ask its hooks, check the answers.

Everything that a stranger's code can do wrong while it is loaded happens here, under one guard.
Each plugin has a pluggy manager of its own. With one manager for all, a raising hook would take
the answers of every other plugin with it, and pluggy's list of results does not say whose they are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
import re
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pluggy

from ptq_core import hookspecs
from ptq_core.api import API_VERSION
from ptq_core.errors import did_you_mean
from ptq_core.plugins.records import KINDS, Entry, Kind, PluginRecord, State, spellings
from ptq_core.target_types import TargetEntry, TargetSpec
from ptq_core.targets import spec_problems
from ptq_core.types import CommandEntry, PreprocessorEntry

EVENT_HOOK = "ptq_event"
_HOOKS = (*(hook for hook, _ in KINDS.values()), EVENT_HOOK)


class _UnfitError(Exception):
    """The plugin breaks its contract; the text says how."""


class _IncompatibleError(Exception):
    """The plugin needs another plugin API; the text says which."""


class Hooks:
    """The hook implementations of one plugin."""

    def __init__(self, plugin: object, record: PluginRecord) -> None:
        self._owner = f"{record.name} {record.version}"
        self._manager = pluggy.PluginManager(hookspecs.PROJECT)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(plugin, name=record.name)
        self.names = frozenset(
            caller.name for caller in self._manager.get_hookcallers(plugin) or ()
        )

    def implementations(self, hook: str) -> list[pluggy.HookImpl]:
        """The plugin's functions for this hook."""
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        return caller.get_hookimpls()

    def call(self, hook: str, **arguments: object) -> list[Any]:
        """What the plugin's functions for this hook return, those that return None left out."""
        if hook not in self.names:
            return []
        if os.environ.get("PTQ_TRACE_PLUGINS", "0") not in ("", "0"):
            shown = ", ".join(f"{key}={value!r}" for key, value in arguments.items())
            sys.stderr.write(f"ptq: {self._owner}: {hook}({shown})\n")
        results: list[Any] = getattr(self._manager.hook, hook)(**arguments)
        return results


def admit(
    record: PluginRecord, load: Callable[[], object], taken: Iterable[tuple[Kind, str]] = ()
) -> tuple[PluginRecord, Hooks | None]:
    """Load one plugin; whatever it does, the answer is a record, and hooks only if it is active.

    Args:
        record: what is known before anything is imported.
        load: imports the plugin.
        taken: kind and spelling of what other entry points of this distribution offer already.
    """
    try:
        # A plugin that prints must not corrupt what `--json` puts on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            plugin = load()
            record = dataclasses.replace(
                record,
                location=getattr(sys.modules.get(_module(record)), "__file__", None)
                or record.location,
                api_version=_api_version(plugin, record),
            )
            _check_api_version(record)
            hooks = Hooks(plugin, record)
            _check_hooks(plugin, hooks)
            entries = _entries(hooks, set(taken))
    except KeyboardInterrupt:
        raise
    except _IncompatibleError as error:
        return dataclasses.replace(record, state=State.INCOMPATIBLE, error=str(error)), None
    except _UnfitError as error:
        return dataclasses.replace(record, state=State.BROKEN, error=str(error)), None
    except BaseException as error:  # noqa: BLE001 - the boundary: sys.exit() must not stop ptq either
        return dataclasses.replace(
            record, state=State.BROKEN, error=describe(error), exception=error
        ), None
    return dataclasses.replace(record, entries=entries), hooks


def describe(error: BaseException) -> str:
    """The exception's type and text in one line, even if the exception cannot be printed."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - the boundary: __str__ is the plugin's code too
        text = "(its text cannot be shown)"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _module(record: PluginRecord) -> str:
    return record.module.partition(":")[0]


# ------------------------------------------------------------------------------- API version


def _api_version(plugin: object, record: PluginRecord) -> tuple[int, int]:
    # The entry point may name an object in the module that states the version.
    declared: object = (1, 0)
    for owner in (plugin, sys.modules.get(_module(record))):
        if hasattr(owner, "ptq_api_version"):
            declared = owner.ptq_api_version
            break
    if isinstance(declared, tuple) and len(declared) == 2:
        major, minor = declared
        if type(major) is type(minor) is int and major >= 0 and minor >= 0:
            return major, minor
    raise _UnfitError(f"ptq_api_version is {declared!r}, expected two integers such as (1, 0)")


def _check_api_version(record: PluginRecord) -> None:
    assert record.api_version is not None
    (major, minor), (host_major, host_minor) = record.api_version, API_VERSION
    if major == host_major and minor <= host_minor:
        return
    older = (major, minor) < API_VERSION
    raise _IncompatibleError(
        f"it needs plugin API {major}.{minor}, this ptq-core has {host_major}.{host_minor}; "
        + (f"upgrade {record.name}" if older else "upgrade ptq-core")
    )


# ------------------------------------------------------------------------------------- hooks


def _check_hooks(plugin: object, hooks: Hooks) -> None:
    problems = list(_hook_problems(plugin, hooks))
    if not hooks.names and not problems:
        problems = ["it implements no hook; mark its functions with @hookimpl from ptq_core.api"]
    if problems:
        raise _UnfitError("; ".join(problems))


def _hook_problems(plugin: object, hooks: Hooks) -> Iterator[str]:
    for name in sorted(hooks.names - set(_HOOKS)):
        # optionalhook=True says that the plugin knows that this host may not have the hook.
        if not all(function.optionalhook for function in hooks.implementations(name)):
            yield f"there is no hook '{name}'; {did_you_mean(name, _HOOKS)}"
    for name in _HOOKS:
        functions = hooks.implementations(name)
        if not functions and callable(getattr(plugin, name, None)):
            yield f"{name}() is not marked with @hookimpl"
        if any(function.wrapper or function.hookwrapper for function in functions):
            yield f"{name}() is a hook wrapper; ptq has none"
        if name == EVENT_HOOK and any(_never_runs(function.function) for function in functions):
            yield f"{name}() is a generator or async; it would never run"


def _never_runs(function: Callable[..., object]) -> bool:
    return (
        inspect.isgeneratorfunction(function)
        or inspect.iscoroutinefunction(function)
        or inspect.isasyncgenfunction(function)
    )


# ----------------------------------------------------------------------------------- entries


def _entries(hooks: Hooks, taken: set[tuple[Kind, str]]) -> dict[Kind, tuple[Entry, ...]]:
    entries: dict[Kind, tuple[Entry, ...]] = {}
    problems: list[str] = []
    for kind, (hook, expected) in KINDS.items():
        admitted: list[Entry] = []
        for item in _items(hooks, hook, expected):
            if not isinstance(item, expected):
                problems.append(f"{hook}() yielded {_shown(item)}, expected a {expected.__name__}")
                continue
            wrong = list(_entry_problems(item))
            if not wrong:
                names = {(kind, name) for name in spellings(item)}
                wrong += [f"offers '{name}' twice" for _, name in sorted(names & taken)]
                taken |= names
            problems += [f"{hook}() {problem}" for problem in wrong]
            admitted.append(item)
        if admitted:
            entries[kind] = tuple(admitted)
    if problems:
        raise _UnfitError("; ".join(problems))
    return entries


def _shown(item: object) -> str:
    if isinstance(item, type):
        return f"the class {item.__name__}"
    return f"a {type(item).__name__}" if isinstance(item, Entry) else reprlib.repr(item)


def _items(hooks: Hooks, hook: str, expected: type[Entry]) -> Iterator[object]:
    results = hooks.call(hook)
    if len(results) < len(hooks.implementations(hook)):
        raise _UnfitError(f"{hook}() returned None, expected an iterable of {expected.__name__}")
    for result in results:
        if not isinstance(result, Iterable):
            raise _UnfitError(
                f"{hook}() returned a {type(result).__name__}, "
                f"expected an iterable of {expected.__name__}"
            )
        yield from result


def _entry_problems(entry: Entry) -> Iterator[str]:
    if not _is_name(entry.name):
        yield f"named an entry {entry.name!r}, expected a word without ':'"
        return
    if not isinstance(entry.aliases, tuple) or not all(map(_is_name, entry.aliases)):
        yield f"'{entry.name}': aliases is {entry.aliases!r}, expected a tuple of words without ':'"
    if not isinstance(entry.summary, str):
        yield f"'{entry.name}': summary is {entry.summary!r}, expected text"
    if isinstance(entry, TargetEntry):
        if not isinstance(entry.spec, TargetSpec):
            yield f"'{entry.name}': spec is a {type(entry.spec).__name__}, expected a TargetSpec"
        else:
            yield from (f"'{entry.name}': spec: {text}" for text in spec_problems(entry.spec))
        for name in ("configure", "keep_float", "lower", "check", "arithmetic"):
            found = getattr(entry, name)
            if found is not None and not callable(found):
                yield f"'{entry.name}': {name} is {found!r}, expected a function"
        if not _is_frozen_dataclass(entry.options):
            yield f"'{entry.name}': options is {entry.options!r}, expected a frozen dataclass type"
        elif dataclasses.fields(entry.options) and entry.configure is None:
            yield f"'{entry.name}': has options but no function configure that they change"
        return
    if not callable(entry.factory):
        yield f"'{entry.name}': factory is {entry.factory!r}, expected a function"
    if not isinstance(entry, CommandEntry) and not _is_frozen_dataclass(entry.options):
        yield f"'{entry.name}': options is {entry.options!r}, expected a frozen dataclass type"
    if isinstance(entry, PreprocessorEntry) and not _are_suffixes(entry.suffixes):
        yield (
            f"'{entry.name}': suffixes is {entry.suffixes!r}, "
            "expected a tuple of endings in lower case, such as ('.npy',)"
        )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != "" and not re.search(r"[\s:]", name)


def _is_frozen_dataclass(options: object) -> bool:
    if not isinstance(options, type) or not dataclasses.is_dataclass(options):
        return False
    # The standard library has no public way to ask; pydantic reads the same attribute.
    return bool(options.__dataclass_params__.frozen)  # type: ignore[attr-defined]


def _are_suffixes(suffixes: object) -> bool:
    return isinstance(suffixes, tuple) and all(
        isinstance(suffix, str) and suffix.startswith(".") and suffix == suffix.lower()
        for suffix in suffixes
    )
