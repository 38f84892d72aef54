"""Several methods in one pass, the table, and quantizing from it."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from ptq_core import calibrate, quantize
from ptq_core.arithmetic import Correction
from ptq_core.calibration import Method, Watch, observe, open_session
from ptq_core.calibration_table import CalibrationTable, LayerCorrection, read_table
from ptq_core.errors import InputError
from ptq_core.graph.model import load_model
from ptq_core.graph.prepare import prepare
from ptq_core.jobs import CalibrationReport, Settings
from ptq_core.planning import make_plan
from ptq_core.plugins import PluginHost, Registered, discover
from ptq_core.samples import model_inputs, samples_from_arrays
from ptq_core.types import CalibratorEntry, Event
from tests import tiny_models as tiny
from tests.jobs.test_third_party import CALIBRATOR

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
MODEL = DIGITS / "digits.onnx"
METHODS = ["MAX_MIN", "MEAN_MAX"]
PICTURES = list(tiny.rng(0).uniform(-1, 1, (12, 3, 32, 32)).astype(np.float32))


@pytest.fixture
def host(site: Any) -> PluginHost:
    """All that is installed, and the thirty lines of a stranger."""
    site.install("ptq-mean-max", CALIBRATOR)
    return discover()


REPORTS: list[CalibrationReport] = []


def digits(host: PluginHost, **given: Any) -> CalibrationReport:
    return calibrate(MODEL, **{"methods": METHODS, "data": PICTURES, "host": host, **given})


def report_of(host: PluginHost) -> CalibrationReport:
    """The report of both methods, made once for all tests: no test changes it."""
    if not REPORTS:
        REPORTS.append(digits(host))
    return REPORTS[0]


def table_of(host: PluginHost) -> CalibrationTable:
    return report_of(host).table


# ------------------------------------------------------------------------- one pass, all methods


def test_methods_give_in_one_pass_what_each_gives_alone(host: PluginHost) -> None:
    events: list[Event] = []
    report = digits(host, progress=events.append)
    assert list(report.methods) == METHODS
    passes = [one for one in events if (one.stage, one.kind) == ("calibrate", "end") and one.total]
    assert len(passes) == 1
    for method in METHODS:
        alone = digits(host, methods=[method])
        assert report.methods[method].ranges == alone.methods[method].ranges
        assert report.methods[method].verification == alone.methods[method].verification
        assert report.table.methods[method] == alone.table.methods[method]


def test_each_method_is_worth_what_quantize_says(host: PluginHost, tmp_path: Path) -> None:
    """The accuracy proxy is that of the really quantized model."""
    report = report_of(host)
    for method, found in report.methods.items():
        quantized = quantize(MODEL, tmp_path / "out.onnx", data=PICTURES, method=method, host=host)
        assert found.verification == quantized.verification
        assert found.ranges == quantized.ranges
        assert set(found.estimates) == set(quantized.estimates) == set(found.ranges)
    assert report.samples == 12
    assert report.between == ("sample 0", "sample 11")


def test_graph_inputs_keep_max_min(host: PluginHost) -> None:
    found = report_of(host).methods
    assert found["MEAN_MAX"].ranges["image"] == found["MAX_MIN"].ranges["image"]
    assert found["MEAN_MAX"].ranges["block1/add"] != found["MAX_MIN"].ranges["block1/add"]


def test_the_config_s_method_is_the_default(host: PluginHost) -> None:
    config = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"activation_quant_method": "mean_max"},
    }
    assert list(digits(host, methods=(), config=config).methods) == ["MEAN_MAX"]
    assert list(digits(host, methods=()).methods) == ["MAX_MIN"]


def test_the_best_is_the_one_that_quantizes_best(host: PluginHost) -> None:
    report = report_of(host)
    ratios = {name: found.sqnr for name, found in report.methods.items()}
    assert report.best is not None
    assert ratios[report.best] == max(value for value in ratios.values() if value is not None)


NARROW = '''
from ptq_core.api import CalibratorEntry, Range, hookimpl

class Narrow:
    """A hundredth of what it sees."""
    high = 0.0
    def observe(self, values, /):
        self.high = max(self.high, float(abs(values).max()) / 100)
    def end_pass(self):
        return False
    def merge(self, other, /):
        self.high = max(self.high, other.high)
    def result(self):
        return Range(low=-self.high, high=self.high)
    def note(self):
        return "a hundredth"

@hookimpl
def ptq_calibrators():
    yield CalibratorEntry(name="NARROW", summary="wrong on purpose",
                          factory=lambda tensor, options: Narrow())
'''


def test_a_method_that_clips_hard_is_warned_of(site: Any) -> None:
    site.install("ptq-narrow", NARROW)
    report = digits(discover(), methods=["NARROW", "MAX_MIN"])
    (warning,) = [one for one in report.warnings if "clips hard" in one]
    assert warning.startswith("NARROW clips hard: '")
    assert "consider MAX_MIN" in warning
    assert report.best == "MAX_MIN"
    (note,) = [one for one in report.notes if "a hundredth" in one]
    assert note.startswith("NARROW: a hundredth (tensors stem/relu6, ")
    assert note.endswith(" more)")
    estimates = report.methods["NARROW"].estimates
    assert set(estimates) == set(report.methods["NARROW"].ranges)
    assert estimates["block1/add"].clipping > 0.9
    # inputs and outputs of the network are not its business
    assert estimates["image"] == report.methods["MAX_MIN"].estimates["image"]


def test_everything_wrong_with_the_request_is_told_at_once(
    host: PluginHost, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        digits(
            host,
            methods=["MAX_MIM", "MEAN_MAX", "NO_SUCH"],
            output=tmp_path,
            tensorrt=tmp_path / "no" / "such",
        )
    text = str(caught.value)
    for part in ("'MAX_MIM'", "did you mean 'MAX_MIN'?", "'NO_SUCH'", "is a folder", "not exist"):
        assert part in text
    assert len(caught.value.problems) == 4


def test_the_model_is_not_overwritten(host: PluginHost, tmp_path: Path) -> None:
    model = tiny.save(tiny.gemm(), tmp_path)
    before = model.read_bytes()
    data = [np.ones(6, np.float32)]
    for where in ({"output": model}, {"tensorrt": model}):
        with pytest.raises(InputError, match="the model itself"):
            calibrate(model, data=data, host=host, **where)
    same = tmp_path / "same"
    with pytest.raises(InputError, match="the same file"):
        calibrate(model, same, tensorrt=same, data=data, host=host)
    assert model.read_bytes() == before


def test_two_plugins_methods_of_one_name_do_not_mix(site: Any) -> None:
    site.install("ptq-rival", CALIBRATOR.replace("MEAN_MAX", "MAX_MIN"))
    names = ["ptq-rival:MAX_MIN", "ptq-calibrator-max-min:MAX_MIN"]
    with pytest.raises(InputError, match="have the same name"):
        digits(discover(), methods=names)
    twice = digits(discover(), methods=[names[1], names[1].casefold()])
    assert list(twice.methods) == ["MAX_MIN"]


# -------------------------------------------------------------------------------------- the table


def test_quantizing_from_the_table_gives_the_same_file(host: PluginHost, tmp_path: Path) -> None:
    """Byte for byte, for every method, as calibrating then and there."""
    table = tmp_path / "table.json"

    def config(method: str) -> dict[str, dict[str, Any]]:
        return {
            "common_quant_param": {"quant_type": "FULL_QUANT"},
            "full_quant_param": {"activation_quant_method": method},
            "data_preprocess_param": {
                "calibrate_path": f"image:{DIGITS / 'calib'}",
                "calibrate_size": 20,
                "input_type": "IMAGE",
                "image_to_format": "RGB",
                "normalize_mean": [127.5] * 3,
                "normalize_std": [127.5] * 3,
                "resize_width": 32,
                "resize_height": 32,
                "resize_method": "LINEAR",
            },
        }

    calibrate(MODEL, table, methods=METHODS, config=config("MAX_MIN"), host=host)
    for method in METHODS:
        direct, stored = tmp_path / "direct.onnx", tmp_path / "stored.onnx"
        first = quantize(MODEL, direct, config=config(method), host=host)
        second = quantize(MODEL, stored, config=config(method), calibration=table, host=host)
        assert stored.read_bytes() == direct.read_bytes()
        assert second.ranges == first.ranges
        assert second.samples == first.samples == 20


def test_without_data_nothing_is_compared(host: PluginHost, tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    report = quantize(MODEL, output, calibration=table_of(host), host=host)
    assert report.verification is not None
    assert (report.verification.samples, report.verification.outputs) == (0, ())
    assert report.verification.cosine is None
    assert report.verification.executed["QLinearConv"] > 10, "it was loaded all the same"
    assert report.estimates == {}
    assert any("was not compared with the float model" in one for one in report.notes)
    with pytest.raises(InputError, match="a quality gate needs samples"):
        quantize(
            MODEL, output, calibration=table_of(host), settings=Settings(min_cosine=0.9), host=host
        )
    with pytest.raises(InputError, match="from the one or from the other"):
        quantize(MODEL, output, calibration=table_of(host), data=[], host=host)


def test_the_method_s_plugin_need_not_be_installed(host: PluginHost, tmp_path: Path) -> None:
    table = table_of(host)
    elsewhere = discover(disabled=["ptq-mean-max"])
    report = quantize(
        MODEL, tmp_path / "out.onnx", calibration=table, method="mean_max", host=elsewhere
    )
    assert report.ranges["block1/add"] == report_of(host).methods["MEAN_MAX"].ranges["block1/add"]
    made_by = {one.key: one.value for one in onnx.load(tmp_path / "out.onnx").metadata_props}
    assert "ptq-mean-max==1.0" in made_by["ptq.plugins"]


def test_a_method_that_the_table_lacks(host: PluginHost, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no ranges of KL") as caught:
        quantize(MODEL, tmp_path / "out.onnx", calibration=table_of(host), method="KL", host=host)
    assert "it has those of MAX_MIN, MEAN_MAX" in str(caught.value)


def test_another_name_of_a_method_finds_it(host: PluginHost, tmp_path: Path) -> None:
    found = report_of(host)
    for method in ("minmax", "ptq-calibrator-max-min:MAX_MIN"):
        report = quantize(
            MODEL, tmp_path / "out.onnx", calibration=found.table, method=method, host=host
        )
        assert report.ranges == found.methods["MAX_MIN"].ranges


def test_another_model_is_refused(host: PluginHost, tmp_path: Path) -> None:
    made = onnx.load(MODEL)
    weight = made.graph.initializer[0]
    changed = onnx.numpy_helper.to_array(weight).copy()
    changed.flat[0] += 1
    weight.CopyFrom(onnx.numpy_helper.from_array(changed, weight.name))
    other = tmp_path / "other.onnx"
    onnx.save(made, other)
    with pytest.raises(InputError, match=r"another model \('digits.onnx'"):
        quantize(other, tmp_path / "out.onnx", calibration=table_of(host), host=host)
    assert not (tmp_path / "out.onnx").exists()


def test_external_data_counts_as_the_model(host: PluginHost, tmp_path: Path) -> None:
    model, data = tmp_path / "net.onnx", tmp_path / "net.data"
    onnx.save(
        tiny.conv_bn_relu(), model, save_as_external_data=True, location="net.data",
        size_threshold=0,
    )  # fmt: skip
    samples = [np.ones((1, 3, 8, 8), np.float32)]
    table = calibrate(model, data=samples, host=host).table
    output = tmp_path / "out.onnx"
    assert quantize(model, output, calibration=table, host=host).files == [output]
    content = bytearray(data.read_bytes())
    content[3] ^= 1
    data.write_bytes(content)
    with pytest.raises(InputError, match="another model"):
        quantize(model, output, calibration=table, host=host)


def test_a_tensor_that_is_missing_is_named(host: PluginHost, tmp_path: Path) -> None:
    whole = table_of(host)
    few = {name: value for name, value in whole.methods["MAX_MIN"].ranges.items() if "1" in name}
    part = whole.methods["MAX_MIN"].model_copy(update={"ranges": few})
    table = whole.model_copy(update={"methods": {"MAX_MIN": part}})
    with pytest.raises(InputError, match=r"no range for \d+ tensors") as caught:
        quantize(MODEL, tmp_path / "out.onnx", calibration=table, host=host)
    text = str(caught.value)
    assert "image, stem/relu6, " in text
    assert "for CPU, per channel" in text
    # the other way round: what a plan does not need may be there
    quantize(MODEL, tmp_path / "out.onnx", calibration=whole, skip=["stem/conv"], host=host)


def with_offset(table: CalibrationTable, offset: float | None) -> CalibrationTable:
    """That offset for each channel of the first layer, and no other correction."""
    corrections = {}
    if offset is not None:
        (key,) = [node.key for node in make_digits_plan().nodes if node.name == "stem/conv"]
        corrections[key] = LayerCorrection(gain=(1.0,) * 32, offset=(offset,) * 32)
    part = table.methods["MAX_MIN"].model_copy(update={"corrections": corrections})
    return table.model_copy(update={"methods": {"MAX_MIN": part}})


def make_digits_plan() -> Any:
    spec = discover().target("CPU").entry.spec
    return make_plan(prepare(load_model(MODEL), spec.minimum_opset), spec)


def biases(path: Path) -> list[np.ndarray]:
    return [
        onnx.numpy_helper.to_array(one)
        for one in onnx.load(path).graph.initializer
        if one.data_type == onnx.TensorProto.INT32
    ]


def test_stored_corrections_are_used_with_their_own_plan_only(
    host: PluginHost, tmp_path: Path
) -> None:
    plain = with_offset(table_of(host), None)
    corrected = with_offset(plain, 100.0)
    output = tmp_path / "out.onnx"

    def made(table: CalibrationTable, **given: Any) -> tuple[int, list[str]]:
        report = quantize(MODEL, output, calibration=table, host=host, **given)
        return max(int(np.abs(one).max()) for one in biases(output)), report.warnings

    before, _ = made(plain)
    after, warnings = made(corrected)
    assert after > 10 * before
    assert not [one for one in warnings if "corrections" in one]
    other, warnings = made(corrected, skip=["block1/add"])
    assert other == made(plain, skip=["block1/add"])[0]
    (warning,) = [one for one in warnings if "corrections" in one]
    assert "left out" in warning
    assert "another plan: CPU, per channel" in warning
    switched_off = {
        "common_quant_param": {"quant_type": "FULL_QUANT"},
        "full_quant_param": {"bias_correction": False},
    }
    assert made(corrected, config=switched_off)[0] == before


def test_corrections_go_through_the_file(host: PluginHost, tmp_path: Path) -> None:
    from ptq_core.calibration_table import table_text, write_text

    table = with_offset(table_of(host), 100.0)
    write_text(tmp_path / "table.json", table_text(table))
    (found,) = read_table(tmp_path / "table.json").methods["MAX_MIN"].layer_corrections().values()
    wanted = Correction(gain=np.ones(32), offset=np.full(32, 100.0))
    np.testing.assert_array_equal(found.gain, wanted.gain)
    np.testing.assert_array_equal(found.offset, wanted.offset)


def test_the_same_request_gives_the_same_table(host: PluginHost, tmp_path: Path) -> None:
    one, two = tmp_path / "one.json", tmp_path / "two.json"
    digits(host, output=one)
    digits(host, output=two)
    assert one.read_bytes() == two.read_bytes()


# -------------------------------------------------------------------------------------- TensorRT


def test_tensorrt_cache_has_all_activations(host: PluginHost, tmp_path: Path) -> None:
    """Of the first method; also of tensors that only pass on another's values."""
    cache = tmp_path / "digits.cache"
    report = digits(host, methods=["MEAN_MAX", "MAX_MIN"], tensorrt=cache)
    assert report.files == [cache]
    assert any("has the ranges of MEAN_MAX" in one for one in report.notes)
    head, *lines = cache.read_text(encoding="utf-8").splitlines()
    assert head == "TRT-8601-EntropyCalibration2"
    scales = {
        name: struct.unpack(">f", bytes.fromhex(bits))[0]
        for name, _, bits in (line.rpartition(": ") for line in lines)
    }
    assert set(scales) == set(report.plan.tensors)
    ranges = report.methods["MEAN_MAX"].ranges
    for name, tensor in report.plan.tensors.items():
        one = ranges[tensor.source]
        assert scales[name] == np.float32(max(-one.low, one.high) / 127)
    digits(host, methods=["MAX_MIN"], tensorrt=cache)
    assert cache.read_text(encoding="utf-8").startswith("TRT-8601-MinMaxCalibration\n")


# ------------------------------------------------------------- divided data, on a real network

SHARED = Path(__file__).parents[3] / "shared"
RESNET = SHARED / "models" / "resnet20_cifar10.onnx"
RESNET_DATA = SHARED / "data" / "dev" / "cifar10" / "calib"
SEEN = 30
# A mean of the samples' values is summed in another order; everything else is counted.
AVERAGES = 1e-12


def resnet_samples() -> list[np.ndarray]:
    cv2 = pytest.importorskip("cv2")
    files = sorted(RESNET_DATA.glob("*.jpg"))[:SEEN]
    pictures = [cv2.imread(str(path))[..., ::-1].astype(np.float32) for path in files]
    mean, std = np.float32([123.675, 116.28, 103.53]), np.float32([58.395, 57.12, 57.375])
    return [((one - mean) / std).transpose(2, 0, 1)[None] for one in pictures]


@pytest.mark.skipif(not RESNET.exists(), reason="the real networks are not in the repository")
@pytest.mark.parametrize(
    "registered", discover().entries("calibrator"), ids=lambda one: one.entry.name
)
def test_merged_parts_give_the_same_ranges_on_a_real_network(
    registered: Registered[CalibratorEntry],
) -> None:
    host = discover()
    target = host.target("CPU").entry.spec
    prepared = prepare(load_model(RESNET), target.minimum_opset)
    # one sample for each run: larger runs may add up in another order
    inputs = model_inputs(prepared.model, shapes={"input": (1, 3, 32, 32)})
    plan = make_plan(prepared, target, method=registered.entry.name)
    methods = {
        one.entry.name: Method(entry=one, options=one.entry.options())
        for one in (registered, host.calibrator("MAX_MIN"))
    }
    runner = host.runner("onnxruntime")
    samples = resnet_samples()

    def seen(part: list[np.ndarray]) -> Watch:
        watch = Watch({"it": plan.watched()}, methods)
        source = samples_from_arrays(part, inputs)
        options = replace(runner.entry.options(), threads=1)
        session = open_session(watch, prepared.model, inputs, runner, options)
        observe(watch, session, source, [].append)
        return watch

    whole = seen(samples)
    assert not whole.end_pass()
    wanted = whole.result().ranges["it"]
    shuffle = random.Random(0)
    for count in (2, 5):
        parts = [samples[i::count] for i in range(count)]
        shuffle.shuffle(parts)
        merged, *others = map(seen, parts)
        for other in others:
            merged.merge(other)
        assert not merged.end_pass()
        found = merged.result()
        assert found.samples == SEEN
        for name, one in wanted.items():
            got = found.ranges["it"][name]
            assert (got.low, got.high) == pytest.approx(
                (one.low, one.high), rel=AVERAGES, abs=AVERAGES
            )
            if registered.entry.name != "REMOVAL_OUTLIER":  # the only one that averages
                assert got == one, name
