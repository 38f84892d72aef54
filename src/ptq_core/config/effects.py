"""What was written but does nothing for this job, and advice."""

from __future__ import annotations

from collections.abc import Iterator

from ptq_core.config.checks import COMMON, DATA, DYNAMIC, FULL, MIXED, WEIGHT, Draft, problem
from ptq_core.errors import Problem

_FEWEST, _MOST = 100, 500  # samples; the guide's advice


def warnings(draft: Draft) -> Iterator[Problem]:
    """What was written and has no effect on this job."""
    job = draft.common.quant_type
    mixed = job == "WEIGHT_QUANT" and draft.common.bit_num == 0
    if job != "WEIGHT_QUANT":
        for key in ("min_quant_weight_size", "min_quant_weight_channel", "enable_encode"):
            if draft.written(COMMON, key):
                message = f"'{key}' has no effect with {job}; it is for WEIGHT_QUANT"
                yield problem(draft, message, COMMON, key)
    for_full = "it is for FULL_QUANT"
    if draft.written(FULL, "target_device"):
        for_full += "; name the device on the command line, --target"
    in_effect = {
        WEIGHT: (job == "WEIGHT_QUANT", "it is for WEIGHT_QUANT"),
        MIXED: (mixed, "it is for WEIGHT_QUANT with bit_num=0"),
        FULL: (job == "FULL_QUANT", for_full),
        DYNAMIC: (job == "DYNAMIC_QUANT", "it is for DYNAMIC_QUANT"),
    }
    kinds = {
        "calibrator": in_effect[FULL],
        "encoding": in_effect[WEIGHT],
    }
    for section, found in draft.document.sections.items():
        effect, reason = in_effect.get(section) or kinds.get(section.partition(".")[0], (True, ""))
        if not effect:
            keys = ", ".join(found.entries)
            what = f"[{found.name}]" + (f" ({keys})" if keys else "")
            yield problem(
                draft, f"{what} has no effect with {_described(draft)}: {reason}", section
            )
    searched = "has no effect with auto_tune=true, which searches for it"
    given = "has no effect with scales, which are given"
    if mixed and draft.mixed.scales:
        for key in ("init_scale", "auto_tune"):
            if draft.written(MIXED, key) and (key != "auto_tune" or draft.mixed.auto_tune):
                yield problem(draft, f"'{key}' {given}", MIXED, key)
    elif mixed and draft.mixed.auto_tune and draft.written(MIXED, "init_scale"):
        yield problem(draft, f"'init_scale' {searched}", MIXED, "init_scale")
    if mixed and not draft.mixed.auto_tune and draft.written(MIXED, "target_cosine"):
        message = "'target_cosine' has no effect without auto_tune=true"
        yield problem(draft, message, MIXED, "target_cosine")
    if mixed:
        for key in ("per_channel", "quant_strategy", "group_size"):
            if draft.written(WEIGHT, key):
                message = f"'{key}' has no effect with bit_num=0: a weight has one step"
                yield problem(draft, message, WEIGHT, key)
    if job == "DYNAMIC_QUANT":
        yield from _dynamic(draft)
    if job == "WEIGHT_QUANT" and draft.weight.encoding and not draft.common.enable_encode:
        message = "'encoding' has no effect with enable_encode=false"
        yield problem(draft, message, WEIGHT, "encoding")


def _dynamic(draft: Draft) -> Iterator[Problem]:
    if draft.dynamic.attention and draft.dynamic.quant_strategy != "ALWC":
        message = f"'attention' has no effect with {draft.dynamic.quant_strategy}: only ALWC has it"
        yield problem(draft, message, DYNAMIC, "attention")
    without_data = not draft.has_data and not draft.present(DATA)
    if draft.written(DYNAMIC, "smoothing") and draft.dynamic.smoothing and without_data:
        message = f"'smoothing' has no effect without samples, which [{DATA}] names"
        yield problem(draft, message, DYNAMIC, "smoothing")


def _described(draft: Draft) -> str:
    job = draft.common.quant_type
    return f"{job} and bit_num={draft.common.bit_num}" if job == "WEIGHT_QUANT" else job


def notes(draft: Draft) -> Iterator[Problem]:
    """Advice."""
    size = draft.data.calibrate_size
    if size and not _FEWEST <= size <= _MOST:
        message = f"calibrate_size = {size}: {_FEWEST} to {_MOST} samples are usual"
        few = "what is measured on few samples may not hold for others"
        many = "more samples take longer and seldom change the ranges"
        hint = few if size < _FEWEST else many
        yield problem(draft, message, DATA, "calibrate_size", hint)
