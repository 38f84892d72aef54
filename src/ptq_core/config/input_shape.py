"""``--inputShape="a:1,32,32,4;b:1,8"``: the shape of each input for one run."""

from __future__ import annotations

import re

from ptq_core.errors import ConfigError, Problem

_DIMENSION = re.compile(r"[0-9]{1,9}")


def parse_input_shape(text: str, *, option: str = "--inputShape") -> dict[str, tuple[int, ...]]:
    """The shape of each named input.

    Inputs are separated by ``;``, a name from its dimensions by the last ``:`` (names may hold
    one), dimensions by ``,``. All dimensions are at least 1: a calibration run needs them fixed.

    Args:
        text: what the user wrote.
        option: how errors call it.

    Raises:
        ConfigError: everything that is wrong, at once.
    """
    problems: list[Problem] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def complain(message: str, hint: str) -> None:
        problems.append(Problem(message=f"{option}: {message}", hint=hint))

    for part in text.split(";"):
        name, colon, dimensions = (piece.strip() for piece in part.rpartition(":"))
        if not part.strip():
            complain("an input is empty", "write name:1,32,32,4 and ';' between inputs")
        elif not colon or not name or not dimensions:
            complain(
                f"'{part.strip()}': expected the input's name and its shape",
                "write name:1,32,32,4 and ';' between inputs",
            )
        elif name in shapes:
            complain(f"input '{name}' is given twice", "keep one of them")
        else:
            sizes = [size.strip() for size in dimensions.strip("[]").split(",")]
            for size in sizes:
                if not _DIMENSION.fullmatch(size) or int(size) == 0:
                    complain(
                        f"input '{name}': dimension '{size}' is not a whole number from 1",
                        "give the shape of the calibration data; all dimensions must be fixed",
                    )
            shapes[name] = tuple(int(size) for size in sizes if _DIMENSION.fullmatch(size))
    if problems:
        raise ConfigError(problems=problems)
    return shapes
