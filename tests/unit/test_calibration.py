from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ptq_core.arithmetic import QParams
from ptq_core.calibration import Calibration, Method, Watch, calibrate, observe, open_session
from ptq_core.errors import DataError, PluginError
from ptq_core.graph.model import serialize, with_outputs
from ptq_core.graph.prepare import prepare
from ptq_core.planning import TensorPlan
from ptq_core.plugins import PluginRecord, Registered, discover
from ptq_core.samples import Sample, Samples, model_inputs, samples_from_arrays
from ptq_core.types import CalibratorEntry, Event, ObservedTensor, QScheme, Range, RunnerEntry
from tests import tiny_models as tiny
from tests.tiny_models import node, normal

RECORD = PluginRecord(name="ptq-stranger", entry_point="stranger", version="9.9")


@pytest.fixture(scope="module")
def ort() -> Registered[RunnerEntry]:
    return discover().runner("onnxruntime")


def registered(factory: Callable[[ObservedTensor, Any], Any], *, batched: bool = False) -> Method:
    entry = CalibratorEntry(name="MINE", summary="mine", factory=factory, batched=batched)
    return Method(entry=Registered(entry=entry, record=RECORD), options=None)


class MinMax:
    """Smallest and largest value; keeps what it was shown the shapes of."""

    passes = 1

    def __init__(self) -> None:
        self.low, self.high = np.inf, -np.inf
        self.shapes: list[tuple[int, ...]] = []
        self.sums: list[float] = []
        self.ended = 0

    def observe(self, values: np.ndarray, /) -> None:
        assert not values.flags.writeable
        self.low, self.high = min(self.low, values.min()), max(self.high, values.max())
        self.shapes.append(values.shape)
        self.sums.append(float(values.sum(dtype=np.float64)))

    def end_pass(self) -> bool:
        self.ended += 1
        return self.ended < self.passes

    def merge(self, other: MinMax, /) -> None:
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)

    def result(self) -> Range:
        return Range(low=float(self.low), high=float(self.high))


class Kept:
    """Makes calibrators and keeps them by tensor."""

    def __init__(self, kind: type[MinMax] = MinMax) -> None:
        self.kind = kind
        self.made: dict[str, MinMax] = {}

    def __call__(self, tensor: ObservedTensor, options: Any) -> MinMax:
        self.made[tensor.name] = self.kind()
        return self.made[tensor.name]


def watch(*names: str, method: str = "MINE") -> dict[str, TensorPlan]:
    return {
        name: TensorPlan(name=name, source=name, scheme=QScheme(), method=method, produced=True)
        for name in names
    }


def ran(
    made: onnx.ModelProto,
    names: tuple[str, ...],
    data: Any,
    method: Method,
    runner: Registered[RunnerEntry],
    events: list[Event] | None = None,
) -> Calibration:
    return ran_all(made, {"MINE": watch(*names)}, data, {"MINE": method}, runner, events)


def ran_all(
    made: onnx.ModelProto,
    watched: Mapping[str, Mapping[str, TensorPlan]],
    data: Any,
    methods: Mapping[str, Method],
    runner: Registered[RunnerEntry],
    events: list[Event] | None = None,
) -> Calibration:
    model = prepare(ir.from_proto(made), 13).model
    inputs = model_inputs(model)
    samples = data if isinstance(data, Samples) else samples_from_arrays(data, inputs)
    emit = (events if events is not None else []).append
    options = discover().runner("onnxruntime").entry.options()
    watch_all = Watch(watched, methods)
    session = open_session(watch_all, model, inputs, runner, options)
    return calibrate(watch_all, session, samples, emit)


def brute_force(
    made: onnx.ModelProto, names: tuple[str, ...], rows: np.ndarray
) -> dict[str, Range]:
    """Every row by itself, all values at once."""
    model = prepare(ir.from_proto(made), 13).model
    inner = serialize(with_outputs(model, [name for name in names if name != "x"]))
    seen: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for row in rows:
        results = tiny.run(inner, {"x": row[None]}) | {"x": row[None]}
        for name in names:
            seen[name].append(results[name])
    return {
        name: Range(low=float(np.min(arrays)), high=float(np.max(arrays)))
        for name, arrays in seen.items()
    }


def with_batch(made: onnx.ModelProto, batch: int | str) -> onnx.ModelProto:
    """The model with this batch at both ends."""
    for value in (*made.graph.input, *made.graph.output):
        dim = value.type.tensor_type.shape.dim[0]
        dim.Clear()
        if isinstance(batch, int):
            dim.dim_value = batch
        elif batch:
            dim.dim_param = batch
    return made


ROWS = tiny.rng(7).standard_normal((23, 3, 8, 8)).astype(np.float32)
NAMES = ("x", "r1", "r2", "p", "y")


def assert_ranges(found: Mapping[str, Range], wanted: Mapping[str, Range]) -> None:
    assert set(found) == set(wanted)
    for name, one in wanted.items():
        # A batch may be summed in another order than a single sample.
        np.testing.assert_allclose(
            [found[name].low, found[name].high], [one.low, one.high], rtol=1e-5, atol=1e-6
        )


@pytest.fixture(scope="module")
def wanted() -> dict[str, Range]:
    return brute_force(tiny.conv_bn_relu(), NAMES, ROWS)


# ---------------------------------------------------------------------------------------- ranges


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch", ["N", ""])
@pytest.mark.parametrize("split", [1, 2, 5, 23])
def test_ranges_do_not_depend_on_the_batches(
    split: int,
    batch: str,
    batched: bool,
    wanted: dict[str, Range],
    ort: Registered[RunnerEntry],
) -> None:
    data = [ROWS[i : i + split] for i in range(0, len(ROWS), split)]
    made = with_batch(tiny.conv_bn_relu(), batch)
    kept = Kept()
    found = ran(made, NAMES, data, registered(kept, batched=batched), ort)
    assert found.samples == len(data)
    assert_ranges(found.ranges["MINE"], wanted)
    if not batched:
        assert {shape[0] for one in kept.made.values() for shape in one.shapes} == {1}
        assert {len(one.shapes) for one in kept.made.values()} == {len(ROWS)}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch", [1, 2, 4, 23, 30])
def test_ranges_of_models_with_a_fixed_batch(
    batch: int, batched: bool, wanted: dict[str, Range], ort: Registered[RunnerEntry]
) -> None:
    kept = Kept()
    made = with_batch(tiny.conv_bn_relu(), batch)
    found = ran(made, NAMES, list(ROWS[:, None]), registered(kept, batched=batched), ort)
    assert found.samples == len(ROWS)
    assert_ranges(found.ranges["MINE"], wanted)
    for one in kept.made.values():
        # rows that only fill up the last batch are not shown
        assert sum(shape[0] for shape in one.shapes) == len(ROWS)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([1, 2, 4]), min_size=1, max_size=8), st.booleans())
def test_any_mixture_of_batches_for_a_fixed_one(sizes: list[int], batched: bool) -> None:
    runner = discover().runner("onnxruntime")
    made = with_batch(tiny.gemm(), 2)
    rows = tiny.rng(3).standard_normal((sum(sizes), 6)).astype(np.float32)
    data = np.split(rows, np.cumsum(sizes)[:-1])
    kept = Kept()
    ran(made, ("x", "r"), data, registered(kept, batched=batched), runner)
    sums = sum(kept.made["x"].sums)
    assert sums == pytest.approx(float(rows.sum(dtype=np.float64)), abs=1e-3), "each row once"


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("batch", ["N", "", 4])
def test_tensors_whose_first_axis_is_not_the_batch_are_seen_whole(
    batch: int | str, batched: bool, ort: Registered[RunnerEntry]
) -> None:
    """[N, 5, 6] reshaped to [N * 5, 6], and transposed to [5, N, 6]."""
    made = tiny.model(
        [
            node("Reshape", "x shape", "flat", "reshape"),
            node("Transpose", "x", "turned", "transpose", perm=[1, 0, 2]),
            node("MatMul", "flat w", "y", "fc"),
            node("MatMul", "turned w", "z", "fc2"),
        ],
        {"x": [batch or None, 5, 6]},
        {"y": [None, 3], "z": [5, None, 3]},
        {"w": normal(6, 3), "shape": np.array([-1, 6])},
    )
    rows = tiny.rng(1).standard_normal((8, 5, 6)).astype(np.float32)
    rows[6, 4, 5], rows[7, 4, 4] = 50.0, -60.0  # in the last step of the last samples
    data = [rows[:4], rows[4:]] if batch != "N" else list(rows[:, None])
    found = ran(made, ("flat", "turned", "y"), data, registered(Kept(), batched=batched), ort)
    for name in ("flat", "turned"):
        assert (found.ranges["MINE"][name].low, found.ranges["MINE"][name].high) == (-60.0, 50.0)


def test_samples_of_different_shapes(ort: Registered[RunnerEntry]) -> None:
    made = tiny.dynamic_shapes()
    draw = tiny.rng(0)
    data = [
        draw.standard_normal((1, 3, size, size + 1)).astype(np.float32) for size in (4, 4, 6, 5, 4)
    ]
    found = ran(made, ("x", "r"), data, registered(Kept(), batched=True), ort)
    assert found.samples == 5
    assert found.ranges["MINE"]["x"].high == max(float(one.max()) for one in data)
    model = prepare(ir.from_proto(made), 13).model
    inner = serialize(with_outputs(model, ["r"]))
    highest = max(float(tiny.run(inner, {"x": one})["r"].max()) for one in data)
    assert found.ranges["MINE"]["r"].high == pytest.approx(highest, rel=1e-5)


def test_inputs_alone_need_no_model(wanted: dict[str, Range]) -> None:
    def refuse(model: Any, options: Any) -> Any:
        raise AssertionError("nothing has to be run")

    runner = Registered(
        entry=RunnerEntry(name="none", summary="none", factory=refuse), record=RECORD
    )
    found = ran(tiny.conv_bn_relu(), ("x",), list(ROWS), registered(Kept()), runner)
    assert_ranges(found.ranges["MINE"], {"x": wanted["x"]})


def test_max_min_is_the_brute_force_range(
    wanted: dict[str, Range], ort: Registered[RunnerEntry]
) -> None:
    entry = discover().calibrator("MAX_MIN")
    method = Method(entry=entry, options=None)
    assert_ranges(ran(tiny.conv_bn_relu(), NAMES, list(ROWS), method, ort).ranges["MINE"], wanted)


# ---------------------------------------------------------------------------------------- passes


class Thrice(MinMax):
    passes = 3


def test_every_pass_sees_every_sample(ort: Registered[RunnerEntry]) -> None:
    kept = Kept(Thrice)
    events: list[Event] = []
    found = ran(tiny.conv_bn_relu(), NAMES, list(ROWS), registered(kept), ort, events)
    assert found.samples == len(ROWS)
    for one in kept.made.values():
        assert one.ended == 3
        assert len(one.shapes) == 3 * len(ROWS)
        np.testing.assert_allclose(sum(one.sums[:23]), sum(one.sums[23:46]), rtol=1e-6)
    assert [one.done for one in events if one.kind == "end"] == [23] * 3


def test_calibrators_may_want_different_numbers_of_passes(ort: Registered[RunnerEntry]) -> None:
    made: dict[str, MinMax] = {}

    def factory(tensor: ObservedTensor, options: Any) -> MinMax:
        made[tensor.name] = MinMax() if tensor.name == "x" else Thrice()
        return made[tensor.name]

    ran(tiny.gemm(), ("x", "r"), [np.ones(6, np.float32)], registered(factory), ort)
    assert (made["x"].ended, made["r"].ended) == (1, 3)
    # who has seen enough is shown no more
    assert (len(made["x"].shapes), len(made["r"].shapes)) == (1, 3)


def test_a_second_pass_over_a_generator_is_an_error(ort: Registered[RunnerEntry]) -> None:
    with pytest.raises(DataError, match="second pass") as caught:
        ran(tiny.gemm(), ("x",), (np.ones(6) for _ in range(3)), registered(Kept(Thrice)), ort)
    assert "give a list" in str(caught.value)


def test_one_pass_over_a_generator_is_enough(ort: Registered[RunnerEntry]) -> None:
    assert ran(tiny.gemm(), ("x",), (np.ones(6) for _ in range(3)), registered(Kept()), ort)


def test_the_hash_says_what_data_it_was(ort: Registered[RunnerEntry]) -> None:
    def digest(data: Any, batch: int | str = "N", kind: type[MinMax] = MinMax) -> str:
        made = with_batch(tiny.conv_bn_relu(), batch)
        return ran(made, ("r1",), data, registered(Kept(kind), batched=True), ort).data_sha256

    single = digest(list(ROWS[:8]))
    assert single == digest([ROWS[:5], ROWS[5:8]])
    assert single == digest([ROWS[:8]], 8)
    assert single == digest(list(ROWS[:8, None]), 3)
    assert single == digest(list(ROWS[:8]), "", Thrice)
    assert single != digest(list(ROWS[:7]))
    assert single != digest(list(ROWS[7::-1]))
    other = ROWS[:8].copy()
    other[3, 1, 4, 4] += 1e-3
    assert single != digest(list(other))


# --------------------------------------------------------------------------------- several methods


class Mean(MinMax):
    """The mean of the samples' extremes."""

    def __init__(self) -> None:
        super().__init__()
        self.lows: list[float] = []
        self.highs: list[float] = []

    def observe(self, values: np.ndarray, /) -> None:
        super().observe(values)
        self.lows.append(float(values.min()))
        self.highs.append(float(values.max()))

    def result(self) -> Range:
        return Range(low=float(np.mean(self.lows)), high=float(np.mean(self.highs)))


def test_several_methods_give_what_each_gives_alone(ort: Registered[RunnerEntry]) -> None:
    """MIN_MAX watches the input whatever the method, as plans say; it is made once."""
    made = with_batch(tiny.conv_bn_relu(), "")
    methods = {"MIN_MAX": registered(Kept()), "MEAN": registered(Kept(Mean))}
    inner = [name for name in NAMES if name != "x"]
    watched = {
        "MIN_MAX": watch(*NAMES, method="MIN_MAX"),
        "MEAN": watch(*inner, method="MEAN") | watch("x", method="MIN_MAX"),
    }
    found = ran_all(made, watched, list(ROWS), methods, ort)
    for name, one in watched.items():
        alone = ran_all(made, {name: one}, list(ROWS), methods, ort)
        assert found.ranges[name] == alone.ranges[name]
        assert found.data_sha256 == alone.data_sha256
    assert found.ranges["MEAN"]["x"] == found.ranges["MIN_MAX"]["x"]
    assert found.ranges["MEAN"]["r1"] != found.ranges["MIN_MAX"]["r1"]


def test_methods_share_one_pass_and_one_calibrator(ort: Registered[RunnerEntry]) -> None:
    first, second = Kept(), Kept(Mean)
    watched = {
        "A": watch("x", "r1", method="A"),
        "B": watch("x", method="A") | watch("r1", method="B"),
    }
    events: list[Event] = []
    made = with_batch(tiny.conv_bn_relu(), "")
    methods = {"A": registered(first), "B": registered(second)}
    ran_all(made, watched, list(ROWS), methods, ort, events)
    assert (set(first.made), set(second.made)) == ({"x", "r1"}, {"r1"})
    for one in (*first.made.values(), *second.made.values()):
        assert len(one.shapes) == len(ROWS)
    assert [one.kind for one in events].count("end") == 1


def test_only_who_asked_for_another_pass_sees_it(ort: Registered[RunnerEntry]) -> None:
    """What nobody wants to see again is not even fetched again."""
    once, thrice = Kept(), Kept(Thrice)
    outputs: list[int] = []

    def counting(form: Any, options: Any) -> Any:
        outputs.append(len(onnx.load_from_string(form).graph.output))
        return ort.entry.factory(form, options)

    watched = {"ONCE": watch("r1", "r2", method="ONCE"), "THRICE": watch("r1", method="THRICE")}
    methods = {"ONCE": registered(once), "THRICE": registered(thrice)}
    made = with_batch(tiny.conv_bn_relu(), "")
    ran_all(made, watched, list(ROWS), methods, fake(counting))
    assert {len(one.shapes) for one in once.made.values()} == {len(ROWS)}
    assert {one.ended for one in once.made.values()} == {1}
    assert (len(thrice.made["r1"].shapes), thrice.made["r1"].ended) == (3 * len(ROWS), 3)
    assert outputs == [2, 1, 1]


def test_a_tensor_is_dropped_when_all_its_calibrators_have_settled(
    ort: Registered[RunnerEntry],
) -> None:
    settling, steady = Kept(Settling), Kept()
    methods = {"SETTLING": registered(settling), "STEADY": registered(steady)}
    watched = {
        "SETTLING": watch("r1", "r2", method="SETTLING"),
        "STEADY": watch("r2", method="STEADY"),
    }
    made = with_batch(tiny.conv_bn_relu(), "")
    ran_all(made, watched, list(ROWS), methods, ort)
    assert len(steady.made["r2"].shapes) == len(ROWS)
    # it is asked after two runs, and shown nothing any more
    assert [len(one.shapes) for one in settling.made.values()] == [2, 2]


def test_values_are_kept_for_estimates(ort: Registered[RunnerEntry]) -> None:
    """A few of each run, spread over all channels and places."""
    made = tiny.model([node("Relu", "x", "r"), node("MatMul", "r w", "y")],
                      {"x": ["N", 64, 49]}, {"y": ["N", 64, 2]}, {"w": normal(49, 2)})  # fmt: skip
    numbers = np.arange(64 * 49, dtype=np.float32).reshape(64, 49)
    data = [numbers + 10_000 * index for index in range(100)]
    found = ran(made, ("x", "r"), data, registered(Kept(), batched=True), ort)
    np.testing.assert_array_equal(found.values["x"], found.values["r"])
    kept = found.values["r"]
    assert 2_000 < kept.size <= 1 << 14
    assert np.isin(kept, np.concatenate(data)).all()
    place = kept.astype(int) % 10_000
    for positions, count in ((place % 49, 49), (place // 49, 64)):
        often = np.bincount(positions, minlength=count)
        assert often.min() > 0.5 * often.mean()
    again = ran(made, ("x", "r"), data, registered(Kept(), batched=True), ort)
    np.testing.assert_array_equal(again.values["r"], kept)


class Noting(MinMax):
    told: str | None = "seen little"

    def note(self) -> Any:
        return self.told


def test_equal_notes_are_told_once_with_their_tensors(ort: Registered[RunnerEntry]) -> None:
    watched = {"MINE": watch("x", "r1", "r2", "p", "y"), "OTHER": watch("r1", method="OTHER")}
    silent = type("Silent", (Noting,), {"told": None})
    methods = {"MINE": registered(Kept(Noting)), "OTHER": registered(Kept(silent))}
    found = ran_all(tiny.conv_bn_relu(), watched, list(ROWS), methods, ort)
    assert found.notes == ("MINE: seen little (tensors x, r1, r2 and 2 more)",)


def test_a_note_that_is_no_text_is_blamed(ort: Registered[RunnerEntry]) -> None:
    kind = type("Wrong", (Noting,), {"told": 3})
    with pytest.raises(PluginError, match=r"ptq-stranger.*the note 3 for tensor 'x'"):
        ran(tiny.gemm(), ("x",), [np.ones(6)], registered(Kept(kind)), ort)


# ----------------------------------------------------------------------------------- divided data


def divided(parts: list[np.ndarray], kind: type[MinMax]) -> Calibration:
    """Each part is seen by a Watch of its own, then they are merged."""
    model = prepare(ir.from_proto(with_batch(tiny.conv_bn_relu(), 1)), 13).model
    inputs = model_inputs(model)
    runner = discover().runner("onnxruntime")
    watches = []
    for part in parts:
        watch_part = Watch({"MINE": watch(*NAMES)}, {"MINE": registered(Kept(kind))})
        samples = samples_from_arrays(list(part), inputs)
        session = open_session(watch_part, model, inputs, runner, runner.entry.options())
        observe(watch_part, session, samples, [].append)
        watches.append(watch_part)
    whole, *others = watches
    for other in others:
        whole.merge(other)
    assert not whole.end_pass()
    return whole.result()


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.integers(0, len(ROWS)), max_size=4),
    st.randoms(use_true_random=False),
)
def test_merged_parts_give_the_same_ranges(cuts: list[int], random: Any) -> None:
    parts = np.split(ROWS, sorted(cuts))
    random.shuffle(parts)
    merged, whole = divided(parts, MinMax), divided([ROWS], MinMax)
    assert merged.ranges == whole.ranges
    assert merged.samples == len(ROWS)
    assert max(values.size for values in merged.values.values()) <= 1 << 14


def test_a_merge_that_fails_is_blamed() -> None:
    def fail(self: Any, other: Any, /) -> None:
        raise ZeroDivisionError("in the plugin")

    with pytest.raises(PluginError, match=r"ptq-stranger.*merging what was seen of 'x'"):
        divided([ROWS[:2], ROWS[2:4]], type("Failing", (MinMax,), {"merge": fail}))


# ---------------------------------------------------------------------------------------- errors


def test_no_samples(ort: Registered[RunnerEntry]) -> None:
    with pytest.raises(DataError, match="no sample could be used"):
        ran(tiny.gemm(), ("x",), [], registered(Kept()), ort)


@pytest.mark.parametrize("batch", ["N", "", 4, 5])
@pytest.mark.parametrize("bad", [0, 3, 11])
def test_values_that_are_not_finite_are_located(
    bad: int, batch: int | str, ort: Registered[RunnerEntry]
) -> None:
    """The square root of one sample's negative number."""
    made = tiny.model(
        [node("Sqrt", "x", "s", "sqrt"), node("MatMul", "s w", "y", "fc")],
        {"x": [batch or None, 4]},
        {"y": [batch or None, 2]},
        {"w": normal(4, 2)},
    )
    rows = np.ones((12, 4), np.float32)
    rows[bad, 2] = -1.0
    with pytest.raises(DataError, match="NaN or infinity") as caught:
        ran(made, ("x", "s"), list(rows[:, None]), registered(Kept(), batched=True), ort)
    assert "tensor 's'" in str(caught.value)
    assert f"sample {bad}" in str(caught.value)


def test_huge_but_finite_values_are_fine(ort: Registered[RunnerEntry]) -> None:
    rows = np.full((3, 6), 1e30, np.float32)
    found = ran(tiny.gemm(), ("x",), list(rows), registered(Kept()), ort)
    assert found.ranges["MINE"]["x"].high == np.float32(1e30)


class Garbage(MinMax):
    def result(self) -> Any:
        return GARBAGE[0]


GARBAGE: list[Any] = [None]


@pytest.mark.parametrize(
    "garbage",
    [
        None, 3.0, (0.0, 1.0), Range(low=1.0, high=0.0), Range(low=float("nan"), high=1.0),
        Range(low=0.0, high=float("inf")), Range(low="a", high="b"),  # type: ignore[arg-type]
        Range(low=None, high=1.0), QParams,  # type: ignore[arg-type]
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_no_range_is_blamed_on_the_plugin(
    garbage: Any, ort: Registered[RunnerEntry]
) -> None:
    GARBAGE[0] = garbage
    with pytest.raises(PluginError) as caught:
        ran(tiny.gemm(), ("x", "r"), [np.ones(6)], registered(Kept(Garbage)), ort)
    assert "plugin 'ptq-stranger' 9.9" in str(caught.value)
    assert "'x'" in str(caught.value)


@pytest.mark.parametrize("method", ["__init__", "observe", "end_pass", "result"])
def test_a_calibrator_that_raises_is_blamed(method: str, ort: Registered[RunnerEntry]) -> None:
    def fail(self: Any, *arguments: Any) -> Any:
        raise ZeroDivisionError("in the plugin")

    kind = type("Failing", (MinMax,), {method: fail})
    with pytest.raises(PluginError, match=r"ptq-stranger.*ZeroDivisionError.*in the plugin"):
        ran(tiny.gemm(), ("x", "r"), [np.ones(6)] * 5, registered(Kept(kind)), ort)
    assert not [one for one in threading.enumerate() if one.name.startswith("ptq-")]


def test_a_calibrator_cannot_change_the_data(ort: Registered[RunnerEntry]) -> None:
    class Writer(MinMax):
        def observe(self, values: np.ndarray, /) -> None:
            values[:] = 0

    with pytest.raises(PluginError, match="read-only"):
        ran(tiny.gemm(), ("x", "r"), [np.ones(6)], registered(Kept(Writer)), ort)


def test_an_error_while_reading_comes_out_as_it_is(ort: Registered[RunnerEntry]) -> None:
    class Files:
        def __iter__(self) -> Iterator[np.ndarray]:
            yield np.ones(6)
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        ran(tiny.gemm(), ("x", "r"), Files(), registered(Kept()), ort)
    assert not [one for one in threading.enumerate() if one.name.startswith("ptq-")]


# ---------------------------------------------------------------------------------------- runners


class FakeRunner:
    """Gives fresh arrays, and counts how many of them are alive."""

    alive = 0
    most = 0

    def run(self, feeds: Mapping[str, Any], /, out: Any = None) -> dict[str, np.ndarray]:
        made = np.array(feeds["x"] * 2)
        FakeRunner.alive += 1
        FakeRunner.most = max(FakeRunner.most, FakeRunner.alive)
        weakref.finalize(made, self._gone)
        return {"r": made}

    @staticmethod
    def _gone() -> None:
        FakeRunner.alive -= 1

    def executed_model(self) -> None:
        return None


def fake(factory: Callable[[Any, Any], Any]) -> Registered[RunnerEntry]:
    return Registered(
        entry=RunnerEntry(name="fake", summary="fake", factory=factory), record=RECORD
    )


def test_memory_does_not_grow_with_the_samples() -> None:
    FakeRunner.most = FakeRunner.alive = 0
    alive: list[int] = []

    class Source:
        """Samples that are counted while they live."""

        living = 0

        def __iter__(self) -> Iterator[np.ndarray]:
            for _ in range(300):
                one = np.ones((1, 6), np.float32)
                Source.living += 1
                weakref.finalize(one, self.gone)
                alive.append(Source.living)
                yield one

        @staticmethod
        def gone() -> None:
            Source.living -= 1

    found = ran(
        tiny.gemm(), ("x", "r"), Source(), registered(Kept()), fake(lambda *_: FakeRunner())
    )
    gc.collect()
    assert found.samples == 300
    assert FakeRunner.most <= 5
    # up to 32 wait for their run, as many are being run or looked at, four are in the queue
    assert max(alive) <= 80


def test_a_runner_that_leaves_out_an_output_is_blamed() -> None:
    class Silent(FakeRunner):
        def run(self, feeds: Mapping[str, Any], /, out: Any = None) -> dict[str, np.ndarray]:
            return {}

    with pytest.raises(PluginError, match=r"ptq-stranger.*did not return 'r'"):
        ran(tiny.gemm(), ("x", "r"), [np.ones(6)], registered(Kept()), fake(lambda *_: Silent()))


def test_a_runner_that_fails_is_blamed_with_the_sample() -> None:
    class Failing(FakeRunner):
        def run(self, feeds: Mapping[str, Any], /, out: Any = None) -> dict[str, np.ndarray]:
            raise MemoryError("no memory")

    with pytest.raises(PluginError, match=r"ptq-stranger.*sample 0.*no memory"):
        ran(tiny.gemm(), ("x", "r"), [np.ones(6)], registered(Kept()), fake(lambda *_: Failing()))


def test_a_model_that_is_too_large_for_memory_comes_as_a_file(
    monkeypatch: pytest.MonkeyPatch, ort: Registered[RunnerEntry]
) -> None:
    from ptq_core.graph import model as model_module

    monkeypatch.setattr(model_module, "EXTERNAL_DATA_THRESHOLD", 100)
    forms: list[Any] = []

    def factory(form: Any, options: Any) -> Any:
        forms.append(form)
        return ort.entry.factory(form, options)

    found = ran(tiny.gemm(), ("x", "r"), [np.ones(6)] * 3, registered(Kept()), fake(factory))
    assert found.samples == 3
    assert isinstance(forms[0], Path)


def test_the_reference_runner_gives_the_same_ranges(ort: Registered[RunnerEntry]) -> None:
    names = ("x", "r1", "y")
    data = list(ROWS[:5])
    first = ran(tiny.conv_bn_relu(), names, data, registered(Kept()), ort)
    second = ran(
        tiny.conv_bn_relu(), names, data, registered(Kept()), discover().runner("reference")
    )
    assert_ranges(second.ranges["MINE"], first.ranges["MINE"])
    assert first.data_sha256 == second.data_sha256


def test_progress_is_told(ort: Registered[RunnerEntry]) -> None:
    events: list[Event] = []
    ran(tiny.gemm(), ("x", "r"), [np.ones(6)] * 10, registered(Kept()), ort, events)
    assert {one.stage for one in events} == {"calibrate"}
    assert events[0].kind == "start"
    done = [one.done for one in events if one.kind == "advance"]
    assert done == sorted(done)
    assert done[-1] == 10
    assert {one.total for one in events} == {10}


def test_samples_may_be_made_by_hand(ort: Registered[RunnerEntry]) -> None:
    samples = Samples(
        open=lambda: iter([Sample(name="mine", feeds={"x": np.ones((1, 6), np.float32)})])
    )
    assert ran(tiny.gemm(), ("x", "r"), samples, registered(Kept()), ort).samples == 1


# --------------------------------------------------------------------------------- what has settled


class Settling(MinMax):
    def settled(self) -> bool:
        return len(self.shapes) >= 2


def test_settled_tensors_are_fetched_no_more(ort: Registered[RunnerEntry]) -> None:
    made: dict[str, MinMax] = {}

    def factory(tensor: ObservedTensor, options: Any) -> MinMax:
        made[tensor.name] = Settling() if tensor.name == "r1" else MinMax()
        return made[tensor.name]

    opened: list[int] = []

    def counting(form: Any, options: Any) -> Any:
        opened.append(1)
        return ort.entry.factory(form, options)

    made_one_by_one = with_batch(tiny.conv_bn_relu(), "")
    found = ran(made_one_by_one, NAMES, list(ROWS), registered(factory), fake(counting))
    assert found.samples == len(ROWS)
    assert len(opened) == 2
    assert 2 <= len(made["r1"].shapes) < len(ROWS)
    assert len(made["y"].shapes) == len(made["x"].shapes) == len(ROWS)


def test_all_tensors_may_settle(ort: Registered[RunnerEntry]) -> None:
    kept = Kept(Settling)
    found = ran(tiny.conv_bn_relu(), ("x", "r1"), list(ROWS), registered(kept), ort)
    assert found.samples == len(ROWS)
    assert found.data_sha256 == ran(
        tiny.conv_bn_relu(), ("x", "r1"), list(ROWS), registered(Kept()), ort
    ).data_sha256  # fmt: skip
