from __future__ import annotations

from collections.abc import Callable

import pytest

from ptq_core.config import parse_config
from ptq_core.errors import ConfigError


@pytest.fixture
def errors() -> Callable[..., list[tuple[int | None, str]]]:
    """Line and message of every problem in a config."""

    def collect(text: str, syntax: str = "ini", **options: object) -> list[tuple[int | None, str]]:
        with pytest.raises(ConfigError) as caught:
            parse_config(text, file="job.cfg", syntax=syntax, **options)
        assert all(p.location.file == "job.cfg" for p in caught.value.problems)
        return [(p.location.line, p.message) for p in caught.value.problems]

    return collect
