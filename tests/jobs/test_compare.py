"""Two models side by side, and a device beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core import compare, quantize
from ptq_core.arithmetic import sqnr
from ptq_core.errors import InputError, ModelError, PluginError
from ptq_core.jobs import Settings
from ptq_core.jobs.compare import ComparisonReport
from ptq_core.types import Event
from tests import tiny_models as tiny
from tests.command_line import Ptq
from tests.tiny_models import Arrays, node, normal

SAMPLES = 3


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Arrays]]:
    """A float model, the integer one, and samples."""
    folder = tmp_path_factory.mktemp("pair")
    made = tiny.residual()
    data = [tiny.feeds(made, seed) for seed in range(SAMPLES)]
    path = tiny.save(made, folder)
    quantize(path, folder / "q.onnx", data=data)
    return path, folder / "q.onnx", data


def outputs(report: ComparisonReport) -> list[str]:
    return [one.name for one in report.tensors if one.output]


def test_side_by_side(pair: tuple[Path, Path, list[Arrays]]) -> None:
    """Tensors of the same name, the outputs first and then the least alike."""
    model, quantized, data = pair
    report = compare(model, quantized, data=data)
    assert report.target is None
    assert report.samples == SAMPLES
    assert outputs(report) == [one.name for one in onnx.load(model).graph.output]
    inner = [one for one in report.tensors if not one.output]
    assert inner
    assert {one.name for one in inner} <= {
        name for made in onnx.load(model).graph.node for name in made.output
    }
    ratios = [one.file_to_float.sqnr for one in inner if one.file_to_float is not None]
    assert ratios == sorted(ratios)
    assert all(10 < ratio < 60 for ratio in ratios)
    assert all(one.device_to_file is one.steps is None for one in report.tensors)


def test_a_model_equals_itself(pair: tuple[Path, Path, list[Arrays]]) -> None:
    model, _, data = pair
    report = compare(model, model, data=data)
    assert len(report.tensors) == sum(len(made.output) for made in onnx.load(model).graph.node)
    for one in report.tensors:
        assert one.file_to_float is not None
        assert one.file_to_float.sqnr > 100  # runtimes add up in other orders
        assert one.file_to_float.cosine == pytest.approx(1)


@pytest.mark.parametrize("target", ["CPU", "cpu", "NVGPU", "ASCEND", "DSP"])
def test_emulation(target: str, pair: tuple[Path, Path, list[Arrays]]) -> None:
    """All targets can execute any file, whoever it was made for."""
    model, quantized, data = pair
    report = compare(model, quantized, data=data, emulate=target)
    assert report.target == target.upper()
    codes = [one for one in report.tensors if one.steps is not None]
    assert codes
    assert {one.name for one in codes} <= {
        name for made in onnx.load(model).graph.node for name in made.output
    } | {"x"}
    for one in codes:
        assert one.steps is not None
        assert one.steps <= 3
        assert one.differing is not None
        assert one.differing < (0.3 if target == "DSP" else 0.03)
    for one in report.tensors:
        assert one.device_to_file is not None
        assert one.device_to_file.cosine > 0.999
        assert one.device_to_float is not None
        assert one.file_to_float is not None
    (output,) = (one for one in report.tensors if one.output)
    assert output.steps is None


def test_devices_differ(pair: tuple[Path, Path, list[Arrays]]) -> None:
    """What is emulated is the device that was asked for: one that rounds coarsely shows it."""
    model, quantized, data = pair
    share = {}
    for target in ("CPU", "DSP"):
        report = compare(model, quantized, data=data, emulate=target)
        share[target] = max(one.differing or 0.0 for one in report.tensors)
    assert share["DSP"] > 5 * share["CPU"]


def test_the_numbers_are_those_of_the_outputs(pair: tuple[Path, Path, list[Arrays]]) -> None:
    model, quantized, data = pair
    report = compare(model, quantized, data=data, emulate="CPU")
    (output,) = (one for one in report.tensors if one.output)
    before, file, device = (
        np.concatenate([tiny.run(path.read_bytes(), one, optimized=fast)["y"] for one in data])
        for path, fast in ((model, True), (quantized, False), (quantized, True))
    )
    for likeness, (a, b) in {
        output.file_to_float: (before, file),
        output.device_to_file: (file, device),
        output.device_to_float: (before, device),
    }.items():
        assert likeness is not None
        assert likeness.sqnr == pytest.approx(sqnr(a, b), abs=0.01)


def test_samples_are_counted_and_progress_is_told(
    pair: tuple[Path, Path, list[Arrays]],
) -> None:
    model, quantized, data = pair
    events: list[Event] = []
    report = compare(model, quantized, data=data, samples=2, emulate="CPU", progress=events.append)
    assert report.samples == 2
    advances = [one for one in events if one.kind == "advance"]
    assert [one.done for one in advances] == list(range(1, len(advances) + 1))
    assert advances[-1].done == advances[-1].total == 2 * len(report.tensors)
    assert set(report.seconds) == {"load", "compare"}


def test_a_model_of_float16(tmp_path: Path) -> None:
    made = tiny.half()
    path, data = tiny.save(made, tmp_path), [tiny.feeds(made)]
    quantize(path, tmp_path / "q.onnx", data=data)
    report = compare(path, tmp_path / "q.onnx", data=data, emulate="CPU")
    assert all(one.file_to_float is not None for one in report.tensors if one.output)


@pytest.mark.parametrize("emulate", [None, "DSP"])
def test_a_model_whose_inputs_and_outputs_are_codes(emulate: str | None, tmp_path: Path) -> None:
    """The host hands over codes; names are those of the float model all the same."""
    made = tiny.residual()
    path, data = tiny.save(made, tmp_path), [tiny.feeds(made, seed, batch=1) for seed in range(2)]
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": "MAX_MIN", "target_device": "DSP"},
        "target.DSP": {"integer_inputs_outputs": True},
    }
    shapes = {name: array.shape for name, array in data[0].items()}
    settings = Settings(input_shapes=shapes)
    quantize(path, tmp_path / "q.onnx", config=config, data=data, settings=settings)
    kinds = [one.type.tensor_type.elem_type for one in onnx.load(tmp_path / "q.onnx").graph.output]
    assert kinds == [onnx.TensorProto.UINT8]
    report = compare(path, tmp_path / "q.onnx", data=data, emulate=emulate, settings=settings)
    (output,) = (one for one in report.tensors if one.output)
    assert output.name == "y"
    assert output.file_to_float is not None
    assert output.file_to_float.sqnr > 25
    assert (output.steps is None) == (emulate is None)


def test_a_file_that_others_have_made(tmp_path: Path) -> None:
    """onnxruntime's own quantizer: other names, a scale of [1], int8 in the middle."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    made = tiny.conv_bn_relu()
    path, data = tiny.save(made, tmp_path), [tiny.feeds(made, seed) for seed in range(2)]

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc,name-defined]
        rows = iter(data)

        def get_next(self) -> Any:
            return next(self.rows, None)

    quantization.quantize_static(
        str(path), str(tmp_path / "q.onnx"), Reader(), per_channel=True,
        activation_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    report = compare(path, tmp_path / "q.onnx", data=data, emulate="CPU")
    assert outputs(report) == ["y"]
    assert len([one for one in report.tensors if one.steps is not None]) >= 4
    assert all(one.device_to_file and one.device_to_file.cosine > 0.999 for one in report.tensors)


def test_dynamic_bodies_and_functions_are_executed(tmp_path: Path) -> None:
    for name in ("control_flow", "functions", "dynamic_shapes"):
        made = tiny.MODELS[name]()
        path = tiny.save(made, tmp_path, f"{name}.onnx")
        data = [tiny.feeds(made, seed) for seed in range(2)]
        quantize(path, tmp_path / f"{name}_q.onnx", data=data)
        report = compare(path, tmp_path / f"{name}_q.onnx", data=data, emulate="CPU")
        assert outputs(report) == [one.name for one in made.graph.output]


def test_a_tensor_that_is_quantized_twice(
    pair: tuple[Path, Path, list[Arrays]], tmp_path: Path
) -> None:
    """By two readers with scales of their own; an output that is an input is passed over."""
    model, _, data = pair
    source = onnx.load(model)
    name = source.graph.input[0].name
    constants = {"s1": np.float32(0.01), "s2": np.float32(0.03), "z": np.int8(0)}
    made = tiny.model(
        [
            node("QuantizeLinear", f"{name} s1 z", "q1"),
            node("DequantizeLinear", "q1 s1 z", "d1"),
            node("QuantizeLinear", f"{name} s2 z", "q2"),
            node("DequantizeLinear", "q2 s2 z", "d2"),
            node("Add", "d1 d2", "sum"),
        ],
        [source.graph.input[0]],
        [tiny.info("sum", tiny_shape(source)), source.graph.input[0]],
        {key: np.asarray(value) for key, value in constants.items()},
    )
    path = tiny.save(made, tmp_path)
    report = compare(model, path, data=data, emulate="CPU")
    assert [(one.name, one.steps) for one in report.tensors if one.steps is not None] == [
        (name, 0), (name, 0),
    ]  # fmt: skip
    assert "no output of the same name" in report.warnings[0]
    assert compare(model, path, data=data).tensors == ()


def test_outputs_that_are_no_reals(tmp_path: Path) -> None:
    """Whole numbers are compared, with and without a device; of truth values that is said."""
    made = tiny.model(
        [node("MatMul", "x w", "m"), node("ArgMax", "m", "best", axis=1),
         node("Greater", "m x", "more")],
        {"x": [1, 4]},
        [tiny.info("best", [1, 1], onnx.TensorProto.INT64),
         tiny.info("more", [1, 4], onnx.TensorProto.BOOL)],
        {"w": normal(4, 4)},
    )  # fmt: skip
    path, data = tiny.save(made, tmp_path), [tiny.feeds(made)]
    quantize(path, tmp_path / "q.onnx", data=data)
    for emulate in (None, "CPU"):
        report = compare(path, tmp_path / "q.onnx", data=data, emulate=emulate)
        assert outputs(report) == ["best"]
        assert report.warnings == []
        assert [one for one in report.notes if "not compared: more" in one]


@pytest.mark.parametrize("emulate", [None, "CPU", "NVGPU", "DSP", "ASCEND"])
def test_what_is_not_a_number_is_told(emulate: str | None, tmp_path: Path) -> None:
    """A logarithm of what is below zero: the lowest code, as onnxruntime gives it."""
    made = tiny.model(
        [node("MatMul", "x v", "a"), node("Log", "x", "l"), node("MatMul", "l w", "y")],
        {"x": [1, 4]}, {"y": [1, 4], "a": [1, 4]}, {"v": normal(4, 4), "w": normal(4, 4)},
    )  # fmt: skip
    written = tiny.model(
        [node("MatMul", "x v", "a"), node("Log", "x", "l"), node("QuantizeLinear", "l s z", "q"),
         node("DequantizeLinear", "q s z", "d"), node("MatMul", "d w", "y")],
        {"x": [1, 4]}, {"y": [1, 4], "a": [1, 4]},
        {"v": normal(4, 4), "w": normal(4, 4), "s": np.array(0.1, "f"), "z": np.array(9, "u1")},
    )  # fmt: skip
    paths = [tiny.save(one, tmp_path, f"{i}.onnx") for i, one in enumerate((made, written))]
    data = [np.array([[-1, 1, 2, 3]], np.float32)]
    report = compare(*paths, data=data, emulate=emulate)
    assert [one for one in report.warnings if "not a number" in one and one.endswith("y, l")]
    assert [one.name for one in report.tensors] == ["y", "a", "l"]  # the worst is first
    if emulate is not None:
        assert report.tensors[-1].steps == 0


def test_a_model_with_a_fixed_batch(tmp_path: Path) -> None:
    """What is counted is samples, not runs of the model."""
    made = tiny.model([node("MatMul", "x w", "y")], {"x": [3, 4]}, {"y": [3, 4]},
                      {"w": normal(4, 4)})  # fmt: skip
    path, data = tiny.save(made, tmp_path), [tiny.normal(1, 4, seed=i) for i in range(7)]
    quantize(path, tmp_path / "q.onnx", data=data)
    assert compare(path, tmp_path / "q.onnx", data=data).samples == 4
    assert compare(path, tmp_path / "q.onnx", data=data, samples=9).samples == 7


def tiny_shape(made: onnx.ModelProto) -> list[int | str]:
    dims = made.graph.input[0].type.tensor_type.shape.dim
    return [one.dim_value or one.dim_param for one in dims]


# ----------------------------------------------------------------------------- what goes wrong


def test_no_such_target(pair: tuple[Path, Path, list[Arrays]]) -> None:
    model, quantized, data = pair
    with pytest.raises(InputError, match="no target named 'TPU'"):
        compare(model, quantized, data=data, emulate="TPU")


def test_a_target_that_does_not_say_how_it_computes(
    pair: tuple[Path, Path, list[Arrays]], site: Any
) -> None:
    site.install(
        "ptq-target-mute",
        """
        from ptq_core.api import OperatorRule, QScheme, TargetEntry, TargetSpec, hookimpl

        @hookimpl
        def ptq_targets():
            spec = TargetSpec(
                activation=QScheme(), weight=QScheme(dtype="int8"),
                operators={"Conv": OperatorRule(quantize="always")},
            )
            yield TargetEntry(name="MUTE", summary="says nothing", spec=spec)
        """,
    )
    model, quantized, data = pair
    with pytest.raises(InputError, match="MUTE does not say how it computes") as caught:
        compare(model, quantized, data=data, emulate="MUTE")
    assert "CPU" in caught.value.problems[0].hint
    with pytest.raises(InputError, match=r"npu\.toml does not say how it computes"):
        compare(model, quantized, data=data, emulate="npu.toml")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ZeroDivisionError('no such rounding')", "ptq-target-broken.*no such rounding"),
        ("return values", "the type float32, expected integers"),
        ("return values.astype('i4')[:1, :1]", r"the shape .*, expected \("),
        ("return values.astype('i4') * 0 + high + 1", r"codes in \[256, 256\], expected them"),
    ],
)
def test_an_arithmetic_that_fails_is_blamed(
    body: str, message: str, pair: tuple[Path, Path, list[Arrays]], site: Any
) -> None:
    site.install(
        "ptq-target-broken",
        f"""
        from ptq_core.api import OperatorRule, QScheme, TargetEntry, TargetSpec, hookimpl

        class Broken:
            def quantize(self, values, scale, zero_point, low, high):
                {body}

        @hookimpl
        def ptq_targets():
            spec = TargetSpec(
                activation=QScheme(), weight=QScheme(dtype="int8"),
                operators=dict(Conv=OperatorRule(quantize="always")),
            )
            yield TargetEntry(name="BROKEN", summary="fails", spec=spec, arithmetic=Broken)
        """,
    )
    model, quantized, data = pair
    with pytest.raises(PluginError, match=message):
        compare(model, quantized, data=data, emulate="BROKEN")


def test_models_that_do_not_belong_together(tmp_path: Path) -> None:
    def made(name: str, kind: int, folder: Path) -> Path:
        model = tiny.model(
            [node("Identity", name, "y")], [tiny.info(name, [1, 2], kind)],
            [tiny.info("y", [1, 2], kind)],
        )  # fmt: skip
        return tiny.save(model, folder, f"{name}{kind}.onnx")

    real, other, whole = (made("x", 1, tmp_path), made("z", 1, tmp_path), made("x", 7, tmp_path))
    data = [np.zeros((1, 2), np.float32)]
    with pytest.raises(ModelError, match="has no input 'x'") as caught:
        compare(real, other, data=data)
    assert "has an input 'z'" in str(caught.value)
    with pytest.raises(ModelError, match="its input 'x' is int64, the float model's float32"):
        compare(real, whole, data=data)


def test_files_that_cannot_be_compared(
    pair: tuple[Path, Path, list[Arrays]], tmp_path: Path
) -> None:
    model, quantized, data = pair
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    with pytest.raises(ModelError, match="is not an ONNX model"):
        compare(model, text, data=data)
    with pytest.raises(ModelError, match="there is no such file"):
        compare(model, tmp_path / "absent.onnx", data=data)
    with pytest.raises(ModelError, match="is already quantized"):
        compare(quantized, model, data=data)


def test_codes_that_are_not_emulated(pair: tuple[Path, Path, list[Arrays]], tmp_path: Path) -> None:
    model, _, data = pair
    source = onnx.load(model)
    name = source.graph.input[0].name
    graph = onnx.helper.make_graph(
        [node("QuantizeLinear", f"{name} s z", "q"), node("DequantizeLinear", "q s z", "y")],
        "coarse", [source.graph.input[0]], [tiny.info("y", tiny_shape(source))],
        [onnx.helper.make_tensor("z", onnx.TensorProto.INT4, [], [0]),
         onnx.helper.make_tensor("s", onnx.TensorProto.FLOAT, [], [0.1])],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 21)]
    made = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = tiny.save(made, tmp_path)
    compare(model, path, data=data)
    with pytest.raises(ModelError, match=f"quantizes '{name}' to INT4, emulation knows integers"):
        compare(model, path, data=data, emulate="CPU")


def test_no_samples(pair: tuple[Path, Path, list[Arrays]]) -> None:
    model, quantized, _ = pair
    with pytest.raises(InputError, match="no sample to compare on"):
        compare(model, quantized, data=[])


# -------------------------------------------------------------------------------- command line


@pytest.fixture
def folder(pair: tuple[Path, Path, list[Arrays]], tmp_path: Path) -> Path:
    for index, feeds in enumerate(pair[2]):
        np.save(tmp_path / f"{index}.npy", feeds["x"])
    return tmp_path


def test_the_table(ptq: Ptq, pair: tuple[Path, Path, list[Arrays]], folder: Path) -> None:
    done = ptq("compare", *pair[:2], "--emulate", "DSP", "--data", folder)
    assert done.code == 0
    assert "codes that differ" in done.out
    lines = done.out.splitlines()
    assert any(line.startswith("output y: DSP to the file: cosine 0.99") for line in lines)
    assert any(line.startswith("output y: the file to the float model: cosine") for line in lines)
    assert f"compared on {SAMPLES} samples" in lines
    assert "running both models ... " in done.err + done.out
    assert "# the same as a config" not in done.out


def test_without_a_device(ptq: Ptq, pair: tuple[Path, Path, list[Arrays]], folder: Path) -> None:
    done = ptq("compare", *pair[:2], "--data", folder, "--samples", 1)
    assert done.code == 0
    assert "compared on 1 sample\n" in done.out
    assert "device" not in done.out


def test_what_is_left_out_is_told(
    ptq: Ptq, pair: tuple[Path, Path, list[Arrays]], folder: Path
) -> None:
    """Samples that cannot be used, and the fast runner."""
    np.save(folder / "00.npy", np.full_like(pair[2][0]["x"], np.nan))
    given = ("compare", *pair[:2], "--data", folder, "--no-plugin", "ptq-runner-onnxruntime")
    assert ptq(*given).code == 2
    done = ptq(*given, "--skip-bad")
    assert done.code == 0
    assert "warning: samples skipped: 1" in done.out
    assert "warning: runner 'reference' is used, which is slow" in done.out


def test_json(ptq: Ptq, pair: tuple[Path, Path, list[Arrays]], folder: Path) -> None:
    done = ptq("compare", *pair[:2], "--data", folder, "--emulate", "CPU", "--json")
    found = json.loads(done.out)
    assert (found["target"], found["samples"], found["exit_code"]) == ("CPU", SAMPLES, 0)
    first = found["tensors"][0]
    assert (first["name"], first["output"], first["steps"]) == ("y", True, None)
    assert set(first["device_to_file"]) == {"cosine", "sqnr"}


def test_only_the_worst_are_shown(ptq: Ptq, tmp_path: Path) -> None:
    nodes = [node("Conv", f"x{i} w", f"x{i + 1}") for i in range(20)]
    made = tiny.model(nodes, {"x0": [1, 4, 2, 2]}, {"x20": [1, 4, 2, 2]},
                      {"w": normal(4, 4, 1, 1)})  # fmt: skip
    path = tiny.save(made, tmp_path)
    np.save(tmp_path / "0.npy", tiny.feeds(made)["x0"])
    few, all_of_them = (
        ptq("compare", path, path, "--data", tmp_path, *more) for more in ((), ("-v",))
    )
    assert "and 4 more that are no worse; -v shows all" in few.out
    assert "no worse" not in all_of_them.out


def test_what_is_missing_on_the_command_line(
    ptq: Ptq, pair: tuple[Path, Path, list[Arrays]], folder: Path
) -> None:
    done = ptq("compare", *pair[:2])
    assert done.code == 2
    assert "there is no data to compare on" in done.err
    config = folder / "c.toml"
    config.write_text('[common_quant_param]\nquant_type = "FULL_QUANT"\n')
    done = ptq("compare", *pair[:2], "-c", config, "--data", folder)
    assert done.code == 2
    assert "--data and -c" in done.err
