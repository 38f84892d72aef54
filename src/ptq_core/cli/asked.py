"""The job that the options of a command line add up to, with those of its config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptq_core.errors import InputError

if TYPE_CHECKING:
    from ptq_core.cli.state import State
    from ptq_core.config import Config
    from ptq_core.jobs import Settings
    from ptq_core.plugins import PluginHost


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a command line of these options asks for.

    Attributes:
        config: the job.
        settings: the rest.
        shown: the command line as a config, where it had none.
    """

    config: Config
    settings: Settings
    shown: str | None = None


def read_options(
    state: State, params: Mapping[str, Any], *, stored: Path | None = None, methods: bool = False
) -> Asked:
    """The job that these options mean, with those of the config file, if there is one.

    Args:
        state: of the command line.
        params: the options' values by their names, as ``typer.Context.params`` has them: one by one
            they stand in the command's signature, for the parser and the help.
        stored: a calibration table that stands for the data.
        methods: ``--method`` chooses among calibrators beside a config, too; by the command.

    Raises:
        InputError: what is missing, wrong or contradicts.
    """
    from ptq_core.cli.data import DataFlags, config_from_flags, rendered
    from ptq_core.cli.pictures import PictureFlags
    from ptq_core.config import config_from_values, load_config, parse_input_shape
    from ptq_core.jobs import Settings

    file, target, skip = (params[name] for name in ("config", "target", "skip"))
    method = None if methods else params["method"]
    pictures = [one.name for one in dataclasses.fields(PictureFlags)]
    flags = DataFlags(
        data=tuple(params["data"] or ()),
        calibrate_size=params["calibrate_size"],
        pictures=PictureFlags(**{name: _text(params[name]) for name in pictures}),
    )
    shapes, scales = params["input_shape"], params.get("save_scales")
    settings = Settings(
        min_cosine=params.get("min_cosine"),
        strict=params["strict"],
        skip_bad=params["skip_bad"],
        input_shapes=parse_input_shape(shapes, option="--input-shape") if shapes else {},
        data_layout=_text(params["input_data_format"]),  # type: ignore[arg-type]
        fp16=params.get("fp16", False),
        save_scales=None if scales is None else Path(scales),
    )
    bits, dynamic = params.get("bits"), params.get("dynamic")
    if stored is not None:
        _refuse_beside_table(stored, flags.given())
    shown = None
    if file is not None:
        flagged: dict[str, object] = dict.fromkeys(flags.given(), True)
        flagged["--per-layer"] = params["per_layer"]
        flagged["--bits"], flagged["--dynamic"] = bits is not None, dynamic
        if stored is None:
            flagged["--method"] = method
        refuse_beside_config(file, flagged)
        job = load_config(Path(file), has_data=stored is not None, target=target)
        job = _with_method(with_skip(job, skip or ()), method)
        _refuse_other_layout(job, settings.data_layout)
    else:
        values = values_of_job(
            bits, dynamic, method, per_layer=params["per_layer"], skip=skip or (), stored=stored
        )
        if flags.data:
            model = Path(params["model"])
            job = config_from_flags(flags, model, state, values, target=target, settings=settings)
        elif stored is not None or bits is not None or dynamic is not None:
            job = config_from_values(values, has_data=True, target=target)
        else:
            raise InputError(
                "there is no data to calibrate with",
                hint="give --data DIR, a folder of samples, or -c CONFIG; "
                "`ptq config new full_quant -o full_quant.cfg` writes a config to start from; "
                "--bits 8 makes only the weights smaller, --dynamic ALWC quantizes activations "
                "while the model runs, both without data",
            )
    job = with_target_options(job, params.get("target_option") or ())
    job = _with_runner(job, state.host, params["runner"], params["threads"])
    if flags.data:
        shown = rendered(job)
        if not state.json:
            besides = " beside --input-shape" if shapes else ""
            state.out.print(
                f"# the same as a config, to keep and give with -c{besides}:\n\n{shown}"
            )
    return Asked(config=job, settings=settings, shown=shown)


def values_of_job(
    bits: int | None,
    dynamic: str | None,
    method: str | None,
    *,
    per_layer: bool,
    skip: Sequence[str],
    stored: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """The sections that these options stand for, of one of the three jobs.

    Raises:
        InputError: options of different jobs.
    """
    from ptq_core.python import dynamic_quant_values, full_quant_values, weight_quant_values

    if bits is None and dynamic is None:
        return full_quant_values(method=method or "MAX_MIN", per_channel=not per_layer, skip=skip)
    job = "--bits" if bits is not None else "--dynamic"
    ranges = "weights alone need no ranges" if bits is not None else "ranges are measured later"
    others = {
        "--method": (method, f"{ranges} of activations"),
        "--calibration": (stored, f"{ranges} of activations"),
        "--dynamic": (bits is not None and dynamic, "these are two jobs"),
        "--per-layer": (dynamic and per_layer, "--dynamic ACWL has one weight scale for a layer"),
    }
    given = {name: why for name, (value, why) in others.items() if value}
    if given:
        raise InputError(
            f"{', '.join(given)} and {job}: {'; '.join(dict.fromkeys(given.values()))}",
            hint=f"leave out the one or the other; without {job} it is full quantization",
        )
    if bits is not None:
        return weight_quant_values(bits, per_channel=not per_layer, skip=skip)
    return dynamic_quant_values(dynamic or "", skip=skip)


def with_skip(config: Config, skip: Sequence[str]) -> Config:
    """The config with further nodes that stay float."""
    if not skip:
        return config
    names = (*config.common.skip_quant_node, *skip)
    common = config.common.model_copy(update={"skip_quant_node": tuple(dict.fromkeys(names))})
    return dataclasses.replace(config, common=common)


def with_target_options(
    config: Config, given: Sequence[str], flag: str = "--target-option "
) -> Config:
    """The config with options of its device, each ``KEY=VALUE``; ``flag`` is what gave them.

    Raises:
        InputError: one has another form, or is there with another value.
    """
    from ptq_core.targets import is_target_file

    if not given:
        return config
    if is_target_file(config.target):
        raise InputError(
            f"{flag}{given[0]}: the device {config.target} is a file, which has no options",
            hint="change the file",
        )
    key = ("target", config.target.rpartition(":")[2].casefold())
    options = dict(config.plugin_options.get(key, {}))
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"{flag}{text}: expected KEY=VALUE", hint="such as activation_bits=16")
        name, value = name.strip(), value.strip()
        if name in options and str(options[name]) != value:
            raise InputError(
                f"{flag}{text}: the option is given twice, {name} is {options[name]}, too",
                location=config.locate(f"target.{key[1]}", name),
                hint="give it once",
            )
        options.setdefault(name, value)
    return dataclasses.replace(config, plugin_options={**config.plugin_options, key: options})


def _with_method(config: Config, method: str | None) -> Config:
    """The config with another one of the methods that a table holds."""
    if method is None or config.full is None:
        return config
    full = config.full.model_copy(update={"activation_quant_method": method})
    return dataclasses.replace(config, full=full)


def refuse_beside_config(config: Path, flags: Mapping[str, object]) -> None:
    """Raise InputError if any of these flags was given: the config has a key for each."""
    given = [name for name, value in flags.items() if value]
    if given:
        raise InputError(
            f"{', '.join(given)} and -c: only one can say it, the flag or {config}",
            hint="change the config, or leave out -c and give --data DIR",
        )


def _text(value: StrEnum | str | None) -> str | None:
    return None if value is None else str(value)


def _refuse_beside_table(table: Path, given: Sequence[str]) -> None:
    if given:
        raise InputError(
            f"{', '.join(given)} and --calibration: the ranges come from samples or from {table}, "
            "not from both",
            hint="leave out the one or the other",
        )


def _with_runner(
    config: Config, host: PluginHost, runner: str | None, threads: int | None
) -> Config:
    named = config.runner
    if runner is not None and named is not None and named.casefold() != runner.casefold():
        raise InputError(
            f"--runner {runner}, but the config names the runner {named}",
            location=config.locate("runner", "name"),
            hint="name one",
        )
    config = dataclasses.replace(config, runner=runner or named)
    if threads is None:
        return config
    entry = host.runner(config.runner or "onnxruntime").entry
    if "threads" not in {one.name for one in dataclasses.fields(entry.options)}:
        raise InputError(f"--threads: the runner {entry.name} has no such option")
    key = ("runner", entry.name.casefold())
    options = {**config.plugin_options.get(key, {}), "threads": threads}
    return dataclasses.replace(config, plugin_options={**config.plugin_options, key: options})


def _refuse_other_layout(config: Config, layout: str | None) -> None:
    own = config.data.input_data_format if config.data is not None else None
    if layout is not None and own is not None and own != layout:
        raise InputError(
            f"--input-data-format {layout}, but the config says input_data_format = {own}",
            location=config.locate("data_preprocess_param", "input_data_format"),
            hint="name one",
        )
