from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ptq_core.config import parse_input_shape
from ptq_core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("inTensorName_1:1,32,32,4", {"inTensorName_1": (1, 32, 32, 4)}),
        ("a:1,32,32,4;b:1,8", {"a": (1, 32, 32, 4), "b": (1, 8)}),
        (" input:0 : 1 , 3 ;x:2", {"input:0": (1, 3), "x": (2,)}),
    ],
)
def test_shapes(text, shapes):
    assert parse_input_shape(text) == shapes


@pytest.mark.parametrize(
    ("text", "messages"),
    [
        ("", ["--inputShape: an input is empty"]),
        ("a:1;", ["--inputShape: an input is empty"]),
        ("1,2", ["--inputShape: '1,2': expected the input's name and its shape"]),
        (":1", ["--inputShape: ':1': expected the input's name and its shape"]),
        ("a:", ["--inputShape: 'a:': expected the input's name and its shape"]),
        ("a:1;a:2", ["--inputShape: input 'a' is given twice"]),
        (
            "a:-1,x;b:0",
            [
                "--inputShape: input 'a': dimension '-1' is not a whole number from 1",
                "--inputShape: input 'a': dimension 'x' is not a whole number from 1",
                "--inputShape: input 'b': dimension '0' is not a whole number from 1",
            ],
        ),
    ],
)
def test_everything_wrong_at_once(text, messages):
    with pytest.raises(ConfigError) as caught:
        parse_input_shape(text)
    assert [p.message for p in caught.value.problems] == messages


names = st.text(st.characters(exclude_characters=";,"), min_size=1).filter(
    lambda name: name == name.strip()
)
shapes = st.dictionaries(names, st.lists(st.integers(1, 10**6), min_size=1), min_size=1)


@given(shapes)
def test_round_trip(shapes):
    text = ";".join(f"{name}:{','.join(map(str, shape))}" for name, shape in shapes.items())
    assert parse_input_shape(text) == {name: tuple(shape) for name, shape in shapes.items()}


@given(st.text("ab:;,01- "))
def test_nothing_but_config_errors(text):
    try:
        found = parse_input_shape(text)
    except ConfigError:
        return
    assert all(size > 0 for shape in found.values() for size in shape)
