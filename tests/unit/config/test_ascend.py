"""The grammar of ``[ascend_context]``, and which shapes and sizes go together."""

from __future__ import annotations

import pytest

from ptq_core.config import ascend


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        ("x:[-1,32,32,4]", {"x": (-1, 32, 32, 4)}),
        (" x : [ 1 , 8 ] ; y:0 : [2]", {"x": (1, 8), "y:0": (2,)}),
        ({"x": [-1, 3]}, {"x": (-1, 3)}),
    ],
)
def test_input_shapes(text, shapes):
    assert ascend.input_shapes(text) == shapes


@pytest.mark.parametrize(
    "text", ["", "x", "x:1,2", "x:[]", "x:[0]", "x:[-2]", "x:[a]", ":[1]", "x:[1];", "x:[1],y:[2]",
             {}, {"x": 3}, {"x": [1.5]}, 7, "x:[1][2]"],
)  # fmt: skip
def test_input_shapes_wrong(text):
    with pytest.raises(ValueError, match=r"expected name:\[1,32,32,4\]"):
        ascend.input_shapes(text)


def test_an_input_has_one_shape():
    with pytest.raises(ValueError, match="input 'x' is there twice"):
        ascend.input_shapes("x:[1];x:[2]")


@pytest.mark.parametrize(
    ("text", "sizes"),
    [
        ("[1~4],[8],[16]", ((1,), (2,), (3,), (4,), (8,), (16,))),
        ("[2~2]", ((2,),)),
        ("[1~3],[2]", ((1,), (2,), (3,))),
        ("[8,8],[16,32]", ((8, 8), (16, 32))),
        ("[1~2,5~6]", ((1, 5), (1, 6), (2, 5), (2, 6))),
        (" [ 1 ~ 2 ] , [ 4 ] ", ((1,), (2,), (4,))),
    ],
)
def test_sizes(text, sizes):
    (profiles,) = ascend.dynamic_profiles(text)
    assert ascend.expand(profiles) == sizes


def test_groups_of_sizes():
    assert ascend.dynamic_profiles("[1];[1~2]") == ((((1, 1),),), (((1, 2),),))


@pytest.mark.parametrize(
    "text", ["", "1", "[]", "[1", "[0]", "[-1]", "[1~]", "[1-4]", "[1][2]", "[1],", "[a]", ";", 4]
)
def test_sizes_wrong(text):
    with pytest.raises(ValueError, match=r"expected \[1~4\],\[8\],\[16\]"):
        ascend.dynamic_profiles(text)


def test_a_range_runs_upwards():
    with pytest.raises(ValueError, match="the range 4~1 runs backwards; write 1~4"):
        ascend.dynamic_profiles("[4~1]")


@pytest.mark.parametrize(
    ("shapes", "sizes"),
    [
        ("x:[1,2,3,4]", None),
        ("x:[-1,2,3,4]", "[1],[2]"),
        ("x:[1,-1,-1,4]", "[1,2],[3~4,5]"),
        ("x:[1,-1,3,-1]", "[1,2]"),
        ("x:[-1,2,3,4];y:[-1,1,1,1]", "[1];[1]"),
        ("x:[-1,2,3,4];y:[5]", "[1]"),
    ],
)
def test_shapes_and_sizes_that_match(shapes, sizes):
    profiles = ascend.dynamic_profiles(sizes) if sizes else ()
    assert ascend.mismatch(ascend.input_shapes(shapes), profiles) is None


@pytest.mark.parametrize(
    ("shapes", "sizes", "message"),
    [
        ("x:[1,2,3,4]", "[1]", "no dimension in input_shape is -1"),
        ("x:[-1,2,3]", "[1]", "input 'x' varies but has 3 dimensions; expected 4"),
        ("x:[-1,-1,3,4]", "[1,1]", "input 'x' varies in dimensions 0, 1; expected 0 alone"),
        ("x:[1,-1,3,4]", "[1]", "input 'x' varies in dimensions 1; expected 0 alone"),
        ("x:[1,-1,-1,-1]", "[1,1,1]", "input 'x' varies in dimensions 1, 2, 3; expected 0 alone"),
        ("x:[-1,2,3,4];y:[1,-1,-1,4]", "[1];[1]", "some inputs vary in their batch and some in"),
        ("x:[-1,2,3,4]", None, "input 'x' has a dimension -1 but there is no dynamic_dims"),
        ("x:[-1,2,3,4]", "[1];[1]", "2 groups of sizes for 1 inputs with a dimension -1"),
        ("x:[-1,2,3,4];y:[-1,1,1,1]", "[1];[2]", "the groups of sizes differ"),
        ("x:[-1,2,3,4]", "[1~101]", "dynamic_dims lists more than 100 sizes"),
        ("x:[-1,2,3,4]", "[1~999999999]", "dynamic_dims lists more than 100 sizes"),
        ("x:[1,2,-1,-1]", "[1~10,1~11]", "dynamic_dims lists more than 100 sizes"),
        ("x:[-1,2,3,4]", "[1],[1,2]", "a profile has 2 entries for 1 dimensions that are -1"),
    ],
)
def test_shapes_and_sizes_that_do_not(shapes, sizes, message):
    profiles = ascend.dynamic_profiles(sizes) if sizes else ()
    found = ascend.mismatch(ascend.input_shapes(shapes), profiles)
    assert found is not None
    assert found.startswith(message)
