"""The hooks of ptq: what a plugin can offer.

A plugin is a module, named by an entry point in the group ``ptq``, with one or more functions
marked ``@hookimpl``. Hooks *register, they never compute*: a hook returns entries (plain data with
a factory), core picks an entry by the name that the user wrote in the config and calls its factory
only then. Import heavy things inside the factory. A hook may return an iterable or be a generator.

Core calls the hooks of one plugin at a time. A plugin that raises is reported by name and left
out; it never stops ``ptq``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ptq_core.target_types import TargetEntry
    from ptq_core.types import (
        CalibratorEntry,
        CommandEntry,
        EncodingEntry,
        Event,
        PreprocessorEntry,
        RunnerEntry,
    )

PROJECT = "ptq"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def ptq_calibrators() -> Iterable[CalibratorEntry]:  # type: ignore[empty-body]
    """Offer calibration algorithms, chosen by ``activation_quant_method = NAME``.

    Example::

        @hookimpl
        def ptq_calibrators():
            yield CalibratorEntry(name="MAX_MIN", summary="smallest and largest value seen",
                                  factory=lambda tensor, options: MaxMin())
    """


@hookspec
def ptq_preprocessors() -> Iterable[PreprocessorEntry]:  # type: ignore[empty-body]
    """Offer ways to read calibration samples from files, chosen by ``input_type = NAME``.

    Example::

        @hookimpl
        def ptq_preprocessors():
            yield PreprocessorEntry(name="WAV", summary="sound files", suffixes=(".wav",),
                                    factory=WavReader, options=WavOptions)
    """


@hookspec
def ptq_targets() -> Iterable[TargetEntry]:  # type: ignore[empty-body]
    """Offer devices, chosen by ``target_device = NAME``.

    Example::

        @hookimpl
        def ptq_targets():
            yield target_from_toml(files(__package__) / "my_npu.toml")
    """


@hookspec
def ptq_runners() -> Iterable[RunnerEntry]:  # type: ignore[empty-body]
    """Offer runtimes that execute the model during calibration and verification.

    Example::

        @hookimpl
        def ptq_runners():
            yield RunnerEntry(name="onnxruntime", summary="onnxruntime's CPU kernels",
                              factory=make_runner, options=Options)
    """


@hookspec
def ptq_encodings() -> Iterable[EncodingEntry]:  # type: ignore[empty-body]
    """Offer ways to store integer weights, chosen by ``encoding = NAME``.

    Example::

        class Bytes:
            def encode(self, codes, bits, opset, /):
                return Encoded(constants={"codes": codes})  # int8 or int16: a Cast is enough

            def decode(self, constants, bits, shape, /):
                return constants["codes"].reshape(shape)

        @hookimpl
        def ptq_encodings():
            yield EncodingEntry(name="BYTES", summary="whole bytes",
                                factory=lambda options: Bytes())
    """


@hookspec
def ptq_commands() -> Iterable[CommandEntry]:  # type: ignore[empty-body]
    """Offer further subcommands of ``ptq``.

    Example::

        @hookimpl
        def ptq_commands():
            yield CommandEntry(name="deploy", summary="copy a model to the board",
                               factory=lambda: deploy_main)
    """


@hookspec
def ptq_event(event: Event) -> None:
    """Observe a running job: progress bars, experiment trackers. Returns nothing.

    Example::

        @hookimpl
        def ptq_event(event):
            if event.kind == "end":
                tracker.log(event.stage)
    """
