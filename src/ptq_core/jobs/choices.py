"""Which plugins a job uses: what the config names, with the options it gives them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ptq_core.calibration import Method
from ptq_core.config import Config, resolve_path, validate_options
from ptq_core.errors import ConfigError, DataError, InputError, Problem
from ptq_core.jobs.job import Job
from ptq_core.jobs.report import Settings
from ptq_core.plugins import PluginHost, PluginRecord, Registered, blame, guarded
from ptq_core.samples import Samples, samples_from_arrays, samples_from_files
from ptq_core.target_types import TargetEntry
from ptq_core.targets import is_target_file, target_from_toml
from ptq_core.types import (
    CalibratorEntry,
    Encoding,
    EncodingEntry,
    ModelInput,
    NoOptions,
    PreprocessorEntry,
    RunnerEntry,
)

PLAIN = "PLAIN"  # the encoding that is always there
_WHOLE_BYTES = (8, 16)  # widths that need no packing
_PREFERRED_RUNNERS = ("onnxruntime", "reference")


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """The target of a job.

    Attributes:
        entry: with the spec that the options ask for, and functions that name their plugin.
        record: its plugin, None where it is a TOML file.
        options: those, as the entry's options class makes them.
        warnings: about the options.
    """

    entry: TargetEntry
    record: PluginRecord | None
    options: Any = field(default_factory=NoOptions)
    warnings: tuple[str, ...] = ()


def find_target(config: Config, host: PluginHost) -> Device:
    """The device: an installed one, or the TOML file that ``target_device`` names.

    Raises:
        InputError: there is no such device, or its options are wrong.
        PluginError: it cannot be configured so.
    """
    if is_target_file(config.target):
        path, _ = resolve_path(config, config.target)
        return Device(entry=target_from_toml(path), record=None)
    with named_at(config, "full_quant_param", "target_device"):
        found = host.target(config.target)
    entry = guarded(found)
    options, warnings = validate_options(
        entry.options, "target", entry.name, config, aliases=entry.aliases
    )
    if entry.configure is not None:
        entry = replace(entry, spec=entry.configure(entry.spec, options))
    return Device(
        entry=entry, record=found.record, options=options, warnings=tuple(map(str, warnings))
    )


def named_target(name: str, host: PluginHost) -> TargetEntry:
    """The same without a config, with the options' defaults."""
    return target_from_toml(Path(name)) if is_target_file(name) else guarded(host.target(name))


@contextmanager
def named_at(config: Config, section: str, key: str) -> Iterator[None]:
    """Add to a failing look-up where the config names what was looked up."""
    try:
        yield
    except InputError as error:
        location = config.locate(section, key)
        if location.file is None:  # it comes from a command line or from Python
            raise
        raise InputError(
            problems=[replace(problem, location=location) for problem in error.problems]
        ) from None


def find_reader(config: Config, host: PluginHost) -> Registered[PreprocessorEntry]:
    """What reads the config's samples; their folders exist. Asked before any work is done."""
    if config.data is None or config.data.input_type is None:
        raise ConfigError("there is no data: give [data_preprocess_param], --data or data=")
    location = config.locate("data_preprocess_param", "calibrate_path")
    missing = [
        Problem(
            message=f"calibrate_path: '{resolve_path(config, text)[0]}' does not exist",
            location=location,
        )
        for text in config.data.calibrate_path.values()
        if not resolve_path(config, text)[0].exists()
    ]
    if missing:
        raise DataError(problems=missing)
    with named_at(config, "data_preprocess_param", "input_type"):
        return host.preprocessor(config.data.input_type)


def find_samples(job: Job, data: Iterable[Any] | None) -> Samples:
    """The caller's samples, or those of the config's folders."""
    config, reader = job.config, job.reader
    if reader is None or config.data is None:
        return samples_from_arrays(() if data is None else data, job.inputs)
    options = _options(job, "preprocessor", reader)
    size = config.data.calibrate_size
    return folder_samples(config, size, job.inputs, reader, options, job.settings, job.report.notes)


def folder_samples(
    config: Config,
    size: int,
    inputs: Sequence[ModelInput],
    reader: Registered[PreprocessorEntry],
    options: Any,
    settings: Settings,
    notes: list[str],
) -> Samples:
    """The samples in the config's folders, the first so many of them; notes say how they are read.

    Args:
        config: names the folders.
        size: how many to use; the others are held out.
        inputs: of the model.
        reader: of :func:`find_reader`.
        options: its options.
        settings: what to do with bad samples, and with too few of them.
        notes: get what the user should know.

    Raises:
        ConfigError: the folders do not fit the model's inputs.
        DataError: a folder has no samples.
    """
    assert config.data is not None
    folders = {}
    for name, text in config.data.calibrate_path.items():
        folders[name], note = resolve_path(config, text)
        if note:
            notes.append(note)
    for item in inputs:
        if len(item.shape) == 4 and item.data_layout is not None:
            buffers = f", BIN buffers are read as {item.data_layout}"
            said = buffers if reader.entry.name == "BIN" else ""
            notes += [f"input '{item.name}': the model takes {item.layout}{said}"]
    return samples_from_files(
        folders,
        size,
        inputs,
        reader,
        options,
        strict=settings.strict,
        skip_bad=settings.skip_bad,
        location=config.locate("data_preprocess_param", "calibrate_path"),
    )


def find_runner(job: Job) -> tuple[Registered[RunnerEntry], Any]:
    """The runner that the config names, else the best that is installed, and its options."""
    runner = choose_runner(job.config, job.host, job.report.warnings)
    return runner, _options(job, "runner", runner)


def choose_runner(config: Config, host: PluginHost, warnings: list[str]) -> Registered[RunnerEntry]:
    """The runner that the config names, else the best that is installed; a slow one is told of.

    Raises:
        InputError: there is none of this name.
    """
    if config.runner is not None:
        return host.runner(config.runner)
    installed = {one.entry.name: one for one in host.entries("runner")}
    name = next((name for name in _PREFERRED_RUNNERS if name in installed), None)
    runner = host.runner(name or _PREFERRED_RUNNERS[0])
    if name != _PREFERRED_RUNNERS[0]:
        warnings.append(
            f"runner '{runner.entry.name}' is used, which is slow; "
            "pip install ptq-runner-onnxruntime"
        )
    return runner


def find_judge(job: Job, runner: Registered[RunnerEntry]) -> Registered[RunnerEntry]:
    """The runner for the quantized model: one that is not its device computes what the file says.

    Such a runtime may quantize or merge more than the file says, which tells nothing of the device.
    """
    if runner.entry.faithful is None or job.target.spec.runner == runner.entry.name:
        return runner
    return replace(runner, entry=replace(runner.entry, factory=runner.entry.faithful))


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightEncoding:
    """How integer weights are stored."""

    name: str
    entry: Registered[EncodingEntry]
    codec: Encoding


def find_weight_encoding(job: Job) -> WeightEncoding:
    """The encoding that the config names, else the one for its number of bits."""
    config, spec = job.config, job.target.spec
    bits, named = config.common.bit_num, config.weight.encoding
    on_the_fly = config.weight.dequant_strategy is not None
    packed = spec.packed_weights and not (on_the_fly and spec.on_the_fly == "cast_add_mul")
    if not config.common.enable_encode:
        name = PLAIN
    elif named is not None:
        name = named
    elif bits in _WHOLE_BYTES or not packed:
        name = PLAIN
        if bits not in _WHOLE_BYTES:
            job.report.warnings.append(
                f"{job.target.name} takes weights in whole bytes only: the file is as large as "
                f"with {8 if bits <= 8 else 16} bits"
            )
    else:
        name = "PACKED" if bits else "ENTROPY"
    with named_at(config, "weight_quant_param", "encoding"):
        found = job.host.encoding(name)
    if not found.entry.portable:
        raise ConfigError(
            f"encoding = {name}: no runtime decodes it, it is for archives",
            location=config.locate("weight_quant_param", "encoding"),
            hint="leave it out, and make an archive of the result with `ptq pack`",
        )
    if not packed and found.entry.name != PLAIN:
        raise ConfigError(
            f"encoding = {name}: what loads models for {job.target.name} takes whole bytes only",
            location=config.locate("weight_quant_param", "encoding"),
            hint=f"leave it out, or take {PLAIN}",
        )
    options = _options(job, "encoding", found)
    with blame(found.record, f"making the encoding {found.entry.name}"):
        codec = found.entry.factory(options)
    return WeightEncoding(name=found.entry.name, entry=found, codec=codec)


def asked_methods(
    config: Config, host: PluginHost, names: Sequence[str] = ()
) -> dict[str, Registered[CalibratorEntry]]:
    """The calibrators that were asked for, by their proper names; the config's if none is named.

    Raises:
        InputError: all that are not there, or that share a name.
    """
    if not names:
        if config.full is None:
            raise ConfigError("FULL_QUANT needs a section [full_quant_param]")
        with named_at(config, "full_quant_param", "activation_quant_method"):
            found = host.calibrator(config.full.activation_quant_method)
        return {found.entry.name: found}
    asked: dict[str, Registered[CalibratorEntry]] = {}
    problems: list[Problem] = []
    for name in names:
        try:
            found = host.calibrator(name)
        except InputError as error:
            problems += error.problems
            continue
        first = asked.setdefault(found.entry.name, found)
        if first.record is not found.record:
            text = f"{first.qualified} and {found.qualified} have the same name"
            problems.append(Problem(message=text, hint="calibrate with each in a run of its own"))
    if problems:
        raise InputError(problems=problems)
    return asked


def find_methods(job: Job, asked: Mapping[str, Registered[CalibratorEntry]]) -> dict[str, Method]:
    """The calibrators that the plans name, with their options."""
    names = {one.method for plan in job.plans.values() for one in plan.watched().values()}
    methods = {}
    for name in sorted(name for name in names if name is not None):
        # the one asked for may be qualified by its plugin, which the bare name would lose
        entry = asked[name] if name in asked else job.host.calibrator(name)
        methods[name] = Method(entry=entry, options=_options(job, "calibrator", entry))
    return methods


def _options(job: Job, kind: str, chosen: Registered[Any]) -> Any:
    """The options that the config gives an entry; the job remembers that it uses the entry."""
    job.used.append((kind, chosen.entry.name))
    return given_options(job.config, kind, chosen, job.report.warnings)


def given_options(config: Config, kind: str, chosen: Registered[Any], warnings: list[str]) -> Any:
    """The options that the config gives an entry; keys without effect become warnings.

    Raises:
        ConfigError: unknown keys, wrong values, missing keys, all at once.
    """
    entry = chosen.entry
    options, found = validate_options(
        entry.options, kind, entry.name, config, aliases=entry.aliases
    )
    warnings += map(str, found)
    return options
