"""The steps of mixed bits as a file: what was searched once can be used again, or set by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from ptq_core.errors import InputError, Location, Problem, did_you_mean

FORMAT: Literal[1] = 1

_HINT = "give a file that was saved with the steps of an earlier run"


def scales_to_json(steps: Mapping[str, float]) -> str:
    """The text of such a file; reading it gives the same numbers again."""
    content = {"format": FORMAT, "steps": {name: float(step) for name, step in steps.items()}}
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def scales_from_json(path: Path, names: Collection[str]) -> dict[str, float]:
    """The step of each of these weights.

    Raises:
        InputError: the file cannot be read or is none of these, or everything that is wrong in it:
            steps that are no numbers above 0, names that are no weights, weights without a step.
    """
    where = Location(file=str(path))
    steps = _read(path, where)
    problems = [
        Problem(
            message=f"'steps' has '{name}', which is no weight to quantize",
            location=where,
            hint=did_you_mean(name, names),
        )
        for name in steps
        if name not in names
    ]
    problems += [
        Problem(
            message=f"'steps' has no step for the weight '{name}'",
            location=where,
            hint="the file was made for another model, or for other weights of it",
        )
        for name in names
        if name not in steps
    ]
    problems += [
        Problem(
            message=f"the step of '{name}' is {json.dumps(step)}, expected a number above 0",
            location=where,
        )
        for name, step in steps.items()
        if not _is_step(step)
    ]
    if problems:
        raise InputError(problems=problems)
    return {name: float(steps[name]) for name in names}


def _read(path: Path, where: Location) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise InputError(
            f"the steps cannot be read: {error.strerror or error}", location=where, hint=_HINT
        ) from error
    except UnicodeDecodeError as error:
        raise InputError("has no steps: it is not text", location=where, hint=_HINT) from error
    except json.JSONDecodeError as error:
        place = Location(file=str(path), line=error.lineno)
        raise InputError(
            f"has no steps: not JSON ({error.msg})", location=place, hint=_HINT
        ) from error
    except RecursionError as error:
        raise InputError("has no steps: nested too deeply", location=where, hint=_HINT) from error
    if not isinstance(found, dict) or set(found) != {"format", "steps"}:
        raise InputError(
            "has no steps: expected an object with 'format' and 'steps'", location=where, hint=_HINT
        )
    if found["format"] != FORMAT:
        raise InputError(
            f"has steps in format {json.dumps(found['format'])}, expected {FORMAT}",
            location=where,
            hint="make it again, or use the ptq that has written it",
        )
    if not isinstance(found["steps"], dict):
        raise InputError(
            "'steps' is not an object of weights' names and numbers", location=where, hint=_HINT
        )
    return found["steps"]


def _is_step(step: Any) -> bool:
    number = isinstance(step, int | float) and not isinstance(step, bool)
    return number and math.isfinite(step) and step > 0
