"""How the keys of a config go together: what is missing and what contradicts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ptq_core.config import ascend
from ptq_core.config.document import Document
from ptq_core.config.sections import (
    AscendContext,
    CommonQuantParam,
    DataPreprocessParam,
    DynamicQuantParam,
    FullQuantParam,
    MixedBitWeightQuantParam,
    WeightQuantParam,
)
from ptq_core.errors import Location, Problem

COMMON, WEIGHT, MIXED, FULL, DATA, DYNAMIC, ASCEND = (
    "common_quant_param",
    "weight_quant_param",
    "mixed_bit_weight_quant_param",
    "full_quant_param",
    "data_preprocess_param",
    "dynamic_quant_param",
    "ascend_context",
)
_WHOLE_BYTES = (8, 16)  # widths that need no packing


@dataclass(frozen=True, kw_only=True, slots=True)
class Draft:
    """The sections, valid one by one. A broken key has its default and was reported already."""

    document: Document
    common: CommonQuantParam
    weight: WeightQuantParam
    mixed: MixedBitWeightQuantParam
    full: FullQuantParam
    data: DataPreprocessParam
    dynamic: DynamicQuantParam
    ascend: AscendContext
    broken: frozenset[tuple[str, str]]
    has_data: bool
    target: str | None

    def job(self) -> str | None:
        """The quant_type, None if it is missing or wrong."""
        return None if (COMMON, "quant_type") in self.broken else self.common.quant_type

    def present(self, section: str) -> bool:
        """Whether the section is there."""
        return section in self.document.sections

    def written(self, section: str, key: str) -> bool:
        """Whether the key is there, whatever its value."""
        return self.present(section) and key in self.document.sections[section].entries

    def sound(self, section: str, *keys: str) -> bool:
        """Whether the values of these keys can be relied on."""
        return not any((section, key) in self.broken for key in keys)

    def locate(self, section: str, key: str | None = None) -> Location:
        """Where a key stands."""
        return self.document.locate(section, key)

    def line(self, key: str, value: str) -> str:
        """A line to add, in the syntax of the file."""
        return f'{key} = "{value}"' if self.document.syntax == "toml" else f"{key}={value}"


def errors(draft: Draft) -> Iterator[Problem]:
    """Everything that the job cannot be run with."""
    yield from _common(draft)
    yield from _on_the_fly(draft)
    yield from _weights(draft)
    yield from _required_data(draft)
    yield from _pictures(draft)
    yield from _devices(draft)
    yield from _dynamic_shapes(draft)


def device(draft: Draft) -> str:
    """The device: the command line's, target_device, ASCEND by its section, or CPU."""
    claims = _claims(draft)
    return claims[0][0] if claims else "CPU"


def problem(
    draft: Draft, message: str, section: str, key: str | None = None, hint: str = ""
) -> Problem:
    """A problem of this key, or of this section."""
    return Problem(message=message, location=draft.locate(section, key), hint=hint)


# ------------------------------------------------------------------------------------- errors


def _common(draft: Draft) -> Iterator[Problem]:
    job, common = draft.job(), draft.common
    if not draft.written(COMMON, "quant_type"):
        missing = "quant_type is missing" if draft.present(COMMON) else f"[{COMMON}] is missing"
        line = draft.line("quant_type", "WEIGHT_QUANT")
        hint = f"write {line} in [{COMMON}], or FULL_QUANT, or DYNAMIC_QUANT"
        yield problem(draft, missing, COMMON, None, hint)
    if job is None or not draft.sound(COMMON, "bit_num"):
        return
    if job != "WEIGHT_QUANT" and common.bit_num != 8:
        message = f"bit_num = {common.bit_num}: {job} works with 8 bits"
        yield problem(draft, message, COMMON, "bit_num", "write bit_num=8 or remove the line")
    if job == "WEIGHT_QUANT" and not common.enable_encode and common.bit_num not in _WHOLE_BYTES:
        yield problem(
            draft,
            f"enable_encode = false with bit_num = {common.bit_num}: only 8 and 16 bits can be "
            "stored without encoding",
            COMMON,
            "enable_encode",
            "remove enable_encode, or take bit_num=8 or 16",
        )


def _on_the_fly(draft: Draft) -> Iterator[Problem]:
    if draft.job() != "WEIGHT_QUANT" or draft.weight.dequant_strategy is None:
        return
    where = (WEIGHT, "dequant_strategy")
    if draft.sound(COMMON, "bit_num") and draft.common.bit_num == 0:
        yield problem(
            draft,
            "dequant_strategy = ON_THE_FLY with bit_num = 0: weights of mixed bits are decoded "
            "when the model is loaded",
            *where,
            "take bit_num from 1 to 16, or remove dequant_strategy",
        )
    provider = draft.ascend.provider
    for_ascend = any(name.casefold() == "ascend" for name, _, _ in _claims(draft))
    if for_ascend and draft.sound(ASCEND, "provider") and (provider or "").casefold() != "ge":
        found = "is missing" if provider is None else f"is '{provider}'"
        if draft.written(ASCEND, "provider"):
            where = (ASCEND, "provider")
        yield problem(
            draft,
            f"dequant_strategy = ON_THE_FLY for ASCEND needs provider = ge, which {found}",
            *where,
            f"add the line {draft.line('provider', 'ge')} to a section [{ASCEND}]",
        )


def _weights(draft: Draft) -> Iterator[Problem]:
    compensates = draft.weight.quant_strategy == "GPTQ" and draft.common.bit_num
    without_data = not draft.has_data and not draft.present(DATA)
    if draft.job() == "WEIGHT_QUANT" and compensates and without_data:
        message = "quant_strategy = GPTQ measures on samples which weights matter"
        hint = f"add a section [{DATA}], or take MSE, which needs no samples"
        yield problem(draft, message, WEIGHT, "quant_strategy", hint)


def _required_data(draft: Draft) -> Iterator[Problem]:
    full = draft.job() == "FULL_QUANT"
    if full and not draft.present(FULL):
        hint = f"add [{FULL}]; every key in it has a default"
        yield problem(draft, f"FULL_QUANT needs a section [{FULL}]", COMMON, "quant_type", hint)
    if draft.has_data or draft.job() is None:
        return
    required = ("calibrate_path", "calibrate_size", "input_type")
    missing = [key for key in required if not draft.written(DATA, key)]
    if full and not draft.present(DATA):
        message = f"FULL_QUANT needs a section [{DATA}] with {', '.join(required)}"
        hint = "the data that activations are measured on, 100 to 500 samples"
        yield problem(draft, message, COMMON, "quant_type", hint)
    elif draft.present(DATA):
        examples = ("input:folder", "100", "IMAGE")
        for key, example in zip(required, examples, strict=True):
            if key in missing:
                message = f"{key} is missing in [{DATA}]"
                hint = f"for example {draft.line(key, example)}"
                yield problem(draft, message, DATA, None, hint)


def _pictures(draft: Draft) -> Iterator[Problem]:
    data = draft.data
    groups = (("resize_width", "resize_height", "resize_method"),
              ("center_crop_width", "center_crop_height"),
              ("normalize_mean", "normalize_std"))  # fmt: skip
    for group in groups:
        there = [key for key in group if draft.written(DATA, key)]
        absent = [key for key in group if key not in there]
        if there and absent:
            message = f"{', '.join(there)} without {', '.join(absent)}"
            hint = f"{', '.join(group)} go together: give all of them, or none"
            yield problem(draft, message, DATA, there[0], hint)
    sound = draft.sound(DATA, "normalize_mean", "normalize_std")
    mean, std = data.normalize_mean, data.normalize_std
    if mean and std and len(mean) != len(std):
        message = f"normalize_std has length {len(std)} and normalize_mean {len(mean)}"
        yield problem(draft, message, DATA, "normalize_std", "give as many of each")
    elif sound and data.image_to_format is not None and (mean or std):
        channels = 1 if data.image_to_format == "GRAY" else 3
        key = "normalize_mean" if mean else "normalize_std"
        if len(mean or std) != channels:
            message = (
                f"{key} has length {len(mean or std)}; {data.image_to_format} takes {channels}"
            )
            yield problem(draft, message, DATA, key, "one number for each channel")
    if 0 in std:
        yield problem(
            draft,
            "normalize_std: 0 cannot be divided by",
            DATA,
            "normalize_std",
            "1 changes nothing",
        )
    for side in ("width", "height"):
        crop, size = getattr(data, f"center_crop_{side}"), getattr(data, f"resize_{side}")
        if crop is not None and size is not None and crop > size:
            message = f"center_crop_{side} = {crop}: pictures are resized to {size} before"
            yield problem(draft, message, DATA, f"center_crop_{side}", f"at most {size}")


def _claims(draft: Draft) -> list[tuple[str, Location, str]]:
    """Who names a device: its name, where, and how errors call the place."""
    claims = []
    if draft.target is not None:
        claims.append((draft.target, Location(), "the command line"))
    named = draft.full.target_device
    if named is not None and draft.job() == "FULL_QUANT":
        location = draft.locate(FULL, "target_device")
        claims.append((named, location, f"target_device{_on_line(location)}"))
    if draft.present(ASCEND):
        location = draft.locate(ASCEND)
        claims.append(("ASCEND", location, f"the section [{ASCEND}]{_on_line(location)}"))
    return claims


def _on_line(location: Location) -> str:
    return "" if location.line is None else f" on line {location.line}"


def _devices(draft: Draft) -> Iterator[Problem]:
    claims = _claims(draft)
    for name, location, who in claims[1:]:
        first, _, first_who = claims[0]
        if name.casefold() != first.casefold():
            yield Problem(
                message=f"{who} means {name}, but {first_who} says {first}",
                location=location,
                hint="name one device",
            )


def _dynamic_shapes(draft: Draft) -> Iterator[Problem]:
    shapes, profiles = draft.ascend.input_shape, draft.ascend.dynamic_dims
    if not draft.sound(ASCEND, "input_shape", "dynamic_dims"):
        return
    if message := ascend.mismatch(shapes, profiles):
        key = "dynamic_dims" if draft.written(ASCEND, "dynamic_dims") else "input_shape"
        hint = "for example input_shape=x:[-1,32,32,4] and dynamic_dims=[1~4],[8]"
        yield problem(draft, message, ASCEND, key, hint)
