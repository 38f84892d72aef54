from __future__ import annotations

from pathlib import Path

import pytest

from ptq_core.errors import ConfigError
from ptq_core.target_types import FixedOutput, OperatorRule, TargetEntry, TargetSpec
from ptq_core.targets import is_target_file, target_from_toml
from ptq_core.types import QScheme

MINIMAL = """
name = "NPU"
summary = "a device"
activation = { dtype = "int8", symmetric = true }
weight = { dtype = "int8", symmetric = true, narrow_range = true }
[operators.Conv]
quantize = "always"
"""


def read(tmp_path: Path, text: str) -> TargetEntry:
    path = tmp_path / "device.toml"
    path.write_text(text, encoding="utf-8")
    return target_from_toml(path)


def problems(tmp_path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    found = [str(one) for one in caught.value.problems]
    assert all(one.startswith(str(tmp_path / "device.toml")) for one in found)
    return found


def test_a_minimal_device_takes_the_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, MINIMAL) == TargetEntry(
        name="NPU",
        summary="a device",
        spec=TargetSpec(
            activation=QScheme(dtype="int8", symmetric=True),
            weight=QScheme(dtype="int8", symmetric=True, narrow_range=True),
            operators={"Conv": OperatorRule(quantize="always")},
        ),
    )


def test_every_key_is_read(tmp_path: Path) -> None:
    entry = read(
        tmp_path,
        """
name = "NPU"
summary = "a device"
aliases = ["N1", "N2"]
bias = "float"
skip_guard = "per_axis_dequantize"
minimum_opset = 15
maximum_opset = 19
activation = { dtype = "uint16" }
weight = { dtype = "int8" }
[operators.Conv]
quantize = "always"
output = "as_needed"
per_channel = true
fuse = ["Relu", "Clip"]
attributes = { auto_pad = ["NOTSET", "VALID"], group = [1], alpha = [1, 0.5] }
reason = "because"
[operators.Softmax]
quantize = "after"
fixed_output = { scale = 1, zero_point = 0 }
[operators.MaxPool]
quantize = "between"
same_parameters = true
""",
    )
    assert entry.aliases == ("N1", "N2")
    assert entry.spec == TargetSpec(
        activation=QScheme(dtype="uint16"),
        weight=QScheme(dtype="int8"),
        bias="float",
        skip_guard="per_axis_dequantize",
        minimum_opset=15,
        maximum_opset=19,
        operators={
            "Conv": OperatorRule(
                quantize="always",
                output="as_needed",
                per_channel=True,
                fuse=("Relu", "Clip"),
                attributes={
                    "auto_pad": ("NOTSET", "VALID"),
                    "group": (1,),
                    "alpha": (1, 0.5),
                },
                reason="because",
            ),
            "Softmax": OperatorRule(
                quantize="after", fixed_output=FixedOutput(scale=1.0, zero_point=0)
            ),
            "MaxPool": OperatorRule(quantize="between", same_parameters=True),
        },
    )
    scale = entry.spec.operators["Softmax"].fixed_output
    assert scale is not None
    assert isinstance(scale.scale, float)


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
sumary = "misspelt"
aliases = "one"
minimum_opset = "13"
skip_gard = "none"
activation = { dtype = "int9", symetric = true }
weight = { dtype = "int8", symmetric = 1 }
[operators.Conv]
quantise = "always"
[operators.Add]
quantize = "sometimes"
fuse = "Relu"
[operators.Sigmoid]
quantize = "between"
fixed_output = { scale = "small", zeropoint = 0 }
""",
    )
    text = "\n".join(found)
    for part in (
        "'name' has to be given",
        "'summary' has to be given",
        "unknown key 'sumary'",
        "aliases: found 'one', expected a list",
        "minimum_opset: found '13', expected a whole number",
        "unknown key 'skip_gard'",
        "did you mean 'skip_guard'",
        "activation.dtype: found 'int9'",
        "did you mean 'int8'",
        "unknown key 'activation.symetric'",
        "weight.symmetric: found 1, expected true or false",
        "unknown key 'operators.Conv.quantise'",
        "'operators.Conv.quantize' is missing",
        "operators.Add.quantize: found 'sometimes', expected always or after or between or "
        "residual or never",
        "operators.Add.fuse: found 'Relu', expected a list",
        "operators.Sigmoid.fixed_output.scale: found 'small', expected a number",
        "unknown key 'operators.Sigmoid.fixed_output.zeropoint'",
        "'operators.Sigmoid.fixed_output.zero_point' is missing",
    ):
        assert part in text, part


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    found = "\n".join(problems(tmp_path, ""))
    for key in ("name", "summary", "activation", "weight", "operators"):
        assert f"'{key}'" in found


@pytest.mark.parametrize("name", ['""', "3", "[]"])
def test_a_name_is_text(tmp_path: Path, name: str) -> None:
    assert problems(tmp_path, MINIMAL.replace('"NPU"', name, 1)) == [
        f"{tmp_path / 'device.toml'}: 'name' has to be given, as text"
    ]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("operators = 3", "operators: found 3, expected a table"),
        ("[operators]\nConv = 3", "operators.Conv: found 3, expected a table"),
        ("operators = []", "expected a table"),
    ],
)
def test_tables_have_to_be_tables(tmp_path: Path, line: str, part: str) -> None:
    head = MINIMAL.split("[operators", maxsplit=1)[0]
    assert any(part in one for one in problems(tmp_path, head + line))


def test_attribute_values_are_checked(tmp_path: Path) -> None:
    found = problems(tmp_path, MINIMAL + "attributes = { group = [[1]], kernel_shape = 3 }\n")
    assert len(found) == 2
    assert "operators.Conv.attributes.group[0]" in found[0]
    assert "operators.Conv.attributes.kernel_shape: found 3, expected a list" in found[1]


def test_a_file_that_is_no_toml(tmp_path: Path) -> None:
    assert "not a TOML file" in problems(tmp_path, "name = ")[0]
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a TOML file"):
        target_from_toml(tmp_path / "binary.toml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        target_from_toml(tmp_path / "none.toml")


def test_files_are_told_from_names() -> None:
    assert is_target_file("./npu.toml")
    assert is_target_file("NPU.TOML")
    assert not is_target_file("CPU")
