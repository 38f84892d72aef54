"""The catalogue of what loaded plugins offer: look-up by name, events, and whom to blame."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, overload

from ptq_core.errors import InputError, PluginError, PtqError, did_you_mean
from ptq_core.plugins.admission import EVENT_HOOK, Hooks, describe
from ptq_core.plugins.records import (
    Kind,
    PluginRecord,
    Registered,
    State,
    folded,
    spellings,
)
from ptq_core.target_types import TargetEntry
from ptq_core.types import (
    CalibratorEntry,
    CommandEntry,
    EncodingEntry,
    Event,
    PreprocessorEntry,
    RunnerEntry,
)

# Names that users know from the guide or from us, and the distribution that offers each.
_KNOWN: Mapping[tuple[Kind, str], str] = {
    ("calibrator", "kl"): "ptq-calibrator-kl",
    ("calibrator", "max_min"): "ptq-calibrator-max-min",
    ("calibrator", "mse"): "ptq-calibrator-mse",
    ("calibrator", "percentile"): "ptq-calibrator-percentile",
    ("calibrator", "removaloutlier"): "ptq-calibrator-removal-outlier",
    ("calibrator", "removal_outlier"): "ptq-calibrator-removal-outlier",
    ("encoding", "entropy"): "ptq-encoding-packed",
    ("encoding", "packed"): "ptq-encoding-packed",
    ("encoding", "rans"): "ptq-encoding-rans",
    ("preprocessor", "image"): "ptq-preprocess-image",
    ("runner", "onnxruntime"): "ptq-runner-onnxruntime",
    ("target", "ascend"): "ptq-target-ascend",
    ("target", "cpu"): "ptq-target-cpu",
    ("target", "dsp"): "ptq-target-dsp",
    ("target", "htp"): "ptq-target-dsp",
    ("target", "nvgpu"): "ptq-target-nvgpu",
}


class PluginHost:
    """Loaded plugins, as a value: make as many as you like, none knows of another.

    Attributes:
        records: every plugin that was found, whatever its state.
        warnings: what the user should be told although nothing stopped because of it.
        event_failures: what each plugin raised in ``ptq_event``; it gets no further events.
    """

    def __init__(self, loaded: Iterable[tuple[PluginRecord, Hooks | None]]) -> None:
        pairs = tuple(loaded)
        self.records: tuple[PluginRecord, ...] = tuple(record for record, _ in pairs)
        self.warnings: list[str] = []
        self.event_failures: dict[PluginRecord, BaseException] = {}
        self._observers = [
            (record, hooks) for record, hooks in pairs if hooks and EVENT_HOOK in hooks.names
        ]

    # ------------------------------------------------------------------------------- look-up

    def calibrator(self, name: str) -> Registered[CalibratorEntry]:
        """The calibration algorithm of this name; see :meth:`find`."""
        return self.find("calibrator", name)

    def preprocessor(self, name: str) -> Registered[PreprocessorEntry]:
        """The reader of samples of this name; see :meth:`find`."""
        return self.find("preprocessor", name)

    def target(self, name: str) -> Registered[TargetEntry]:
        """The device of this name; see :meth:`find`."""
        return self.find("target", name)

    def runner(self, name: str) -> Registered[RunnerEntry]:
        """The runtime of this name; see :meth:`find`."""
        return self.find("runner", name)

    def encoding(self, name: str) -> Registered[EncodingEntry]:
        """The encoding of this name; see :meth:`find`."""
        return self.find("encoding", name)

    def command(self, name: str) -> Registered[CommandEntry]:
        """The subcommand of this name; see :meth:`find`."""
        return self.find("command", name)

    def find(self, kind: Kind, name: str) -> Registered[Any]:
        """The entry of this name or alias, or of ``plugin:NAME``; case does not count.

        Raises:
            InputError: there is none (and why that may be), or several plugins offer it.
        """
        plugin, _, bare = name.strip().rpartition(":")
        found = [
            registered
            for registered in self.entries(kind)
            if bare.casefold() in spellings(registered.entry)
            and (not plugin or folded(plugin) == folded(registered.record.name))
        ]
        if not found:
            raise _not_found(kind, name.strip(), self.entries(kind), self.records)
        if len(found) > 1:
            raise _ambiguous(kind, name.strip(), found)
        return found[0]

    @overload
    def entries(self, kind: Literal["calibrator"]) -> tuple[Registered[CalibratorEntry], ...]: ...
    @overload
    def entries(
        self, kind: Literal["preprocessor"]
    ) -> tuple[Registered[PreprocessorEntry], ...]: ...
    @overload
    def entries(self, kind: Literal["target"]) -> tuple[Registered[TargetEntry], ...]: ...
    @overload
    def entries(self, kind: Literal["runner"]) -> tuple[Registered[RunnerEntry], ...]: ...
    @overload
    def entries(self, kind: Literal["encoding"]) -> tuple[Registered[EncodingEntry], ...]: ...
    @overload
    def entries(self, kind: Literal["command"]) -> tuple[Registered[CommandEntry], ...]: ...
    @overload
    def entries(self, kind: Kind) -> tuple[Registered[Any], ...]: ...

    def entries(self, kind: Kind) -> tuple[Registered[Any], ...]:
        """All entries of a kind, by name and then by plugin."""
        registered: list[Registered[Any]] = [
            Registered(entry=entry, record=record)
            for record in self.records
            for entry in record.entries.get(kind, ())
        ]
        registered.sort(key=lambda one: (one.entry.name.casefold(), folded(one.record.name)))
        return tuple(registered)

    # -------------------------------------------------------------------------------- events

    def emit(self, event: Event) -> None:
        """Tell every plugin that observes jobs. One that raises is not told any more."""
        for record, hooks in tuple(self._observers):
            try:
                hooks.call(EVENT_HOOK, event=event)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - the boundary: watching never stops a job
                self._observers.remove((record, hooks))
                self.event_failures[record] = error
                self.warnings.append(
                    f"{record} failed while observing the job and gets no further events: "
                    f"{describe(error)}"
                )


@contextmanager
def blame(record: PluginRecord, doing: str = "") -> Iterator[None]:
    """Turn what a plugin's code raises into a PluginError that names the plugin.

    Errors that ptq raises on purpose, and the user's interrupt, pass through. ``doing`` says what
    the plugin was asked for, such as "reading the samples".

    Raises:
        PluginError: with the plugin's own exception as its cause.
    """
    try:
        yield
    except (PtqError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        raise PluginError(
            f"{record} failed{f' while {doing}' if doing else ''}: {describe(error)}",
            hint=f"use --no-plugin {record.switch} to leave it out",
        ) from error


# ------------------------------------------------------------------------------ explanations


def _not_found(
    kind: Kind, name: str, offered: Collection[Registered[Any]], records: Iterable[PluginRecord]
) -> InputError:
    bare = Counter(one.entry.name.casefold() for one in offered)
    names = [
        one.qualified if ":" in name or bare[one.entry.name.casefold()] > 1 else one.entry.name
        for one in offered
    ]
    there_are = f"there are: {', '.join(names)}" if names else f"no {kind} is installed"
    hints = [did_you_mean(name, names), there_are]
    if not hints[0].startswith("did you mean"):
        hints = [there_are]
    distribution = _KNOWN.get((kind, name.rpartition(":")[2].casefold()), "")
    absent = [record for record in records if record.state is not State.ACTIVE]
    likely = [record for record in absent if folded(record.name) == distribution]
    if distribution and not likely:
        hints.append(f"pip install {distribution} (or ptq-core[all])")
    message = "; ".join([f"no {kind} named '{name}'", *_suspects(likely or absent)])
    return InputError(message, hint="; ".join(hints))


def _suspects(absent: Iterable[PluginRecord]) -> Iterator[str]:
    """Why plugins that may offer the missing name are not there."""
    switched_off: dict[str, list[str]] = {}
    for record in absent:
        match record.state:
            case State.DISABLED:
                names = switched_off.setdefault(record.error, [])
                if record.switch not in names:
                    names.append(record.switch)
            case State.INCOMPATIBLE:
                yield f"{record} is incompatible and may provide it: {record.error}"
            case _:
                yield f"{record} failed to load and may provide it: {record.error}"
    for reason, names in switched_off.items():
        verb = "plugin {} is" if len(names) == 1 else "plugins {} are"
        yield f"{verb.format(', '.join(map(repr, names)))} {reason} and may provide it"


def _ambiguous(kind: Kind, name: str, found: list[Registered[Any]]) -> InputError:
    plugins = " and ".join(f"'{one.record.name}' {one.record.version}" for one in found)
    return InputError(
        f"{kind} '{name}' is offered by {len(found)} plugins: {plugins}",
        hint="write " + " or ".join(f"'{one.qualified}'" for one in found),
    )
