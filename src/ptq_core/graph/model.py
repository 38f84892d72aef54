"""Load a model with messages that help, and save one so that nothing is ever half-written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir
from google.protobuf.message import DecodeError

from ptq_core.errors import InputError, Location, ModelError
from ptq_core.graph.operators import QUANTIZED, label

# protobuf cannot serialize 2 GiB; weights go to a file of their own well before that.
EXTERNAL_DATA_THRESHOLD = 1_800_000_000


def load_model(path: Path) -> ir.Model:
    """The float model in the file, as :func:`read_model` reads it.

    Raises:
        ModelError: it cannot be read, or somebody has quantized it already.
    """
    model = read_model(path)
    refuse_quantized(model, str(path))
    return model


def read_model(path: Path) -> ir.Model:
    """The model in the file; weights in external files are mapped, not read.

    Raises:
        ModelError: there is no such file, it is not an ONNX model, it is cut short, or an
            external data file is missing.
    """
    where = Location(file=str(path))
    if not path.exists():
        raise ModelError("there is no such file", location=where, hint="check the path")
    if path.is_dir():
        raise ModelError("is a folder, expected an ONNX file", location=where)
    size = path.stat().st_size
    if size == 0:
        raise ModelError("is empty, expected an ONNX model", location=where)
    try:
        model = ir.load(path)
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror or error}", location=where) from error
    except (DecodeError, ValueError, TypeError, RuntimeError, UnicodeDecodeError) as error:
        raise ModelError(
            f"is not an ONNX model, or was cut short ({size} bytes): {_first_line(error)}",
            location=where,
            hint=_guess(path),
        ) from error
    if model.ir_version is None or model.ir_version < 1 or not len(model.graph):
        raise ModelError(
            f"is not an ONNX model, or was cut short ({size} bytes): it has no graph",
            location=where,
            hint=_guess(path),
        )
    _check_external_data(model, path)
    return model


def _check_external_data(model: ir.Model, path: Path) -> None:
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        where = Location(file=str(path), tensor=value.name)
        data = Path(tensor.path)
        if not data.exists():
            raise ModelError(
                f"its external data file '{data}' is missing",
                location=where,
                hint="keep the file with the weights beside the model",
            )
        end, found = (tensor.offset or 0) + tensor.nbytes, data.stat().st_size
        if found < end:
            raise ModelError(
                f"its external data file '{data}' was cut short: it has {found} bytes, "
                f"at least {end} are needed",
                location=where,
                hint="copy the file with the weights again",
            )


def refuse_quantized(model: ir.Model, file: str | None = None) -> None:
    """Raise ModelError if somebody has quantized the model already."""
    found = [node for node in model.graph.all_nodes() if node.op_type in QUANTIZED]
    if found:
        first = found[0]
        raise ModelError(
            f"is already quantized: {len(found)} of its nodes are quantization operators, the "
            f"first is {first.op_type} '{label(first)}'",
            location=Location(file=file),
            hint="start from the float32 model",
        )


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _guess(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(256)
    if head.startswith(b"version https://git-lfs"):
        return "this is a Git LFS pointer; fetch the real file with 'git lfs pull'"
    if head.startswith(b"PK"):
        return "this is a ZIP archive (a PyTorch file?); export the model to ONNX"
    if head.isascii() and b"\0" not in head:
        return "this looks like a text file"
    return "export or copy the model again"


def model_bytes(model: ir.Model) -> int:
    """Bytes of all constants of the main graph."""
    return sum(
        value.const_value.nbytes
        for value in model.graph.initializers.values()
        if value.const_value is not None
    )


def serialize(model: ir.Model) -> bytes:
    """The model as one protobuf; the same model gives the same bytes."""
    proto = ir.to_proto(model)
    return bytes(proto.SerializeToString(deterministic=True))


def copy_of(model: ir.Model) -> ir.Model:
    """A copy that shares the constants; types and shapes included, which old onnx_ir leaves out."""
    copy = model.clone()
    for one, other in zip(_values(model.graph), _values(copy.graph), strict=True):
        other.type, other.shape = other.type or one.type, other.shape or one.shape
    return copy


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy of the model (constants are shared) whose outputs are these tensors instead."""
    copy = copy_of(model)
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs.clear()
    for name in names:
        if name in values:
            values[name].dtype = values[name].dtype or ir.DataType.FLOAT
            copy.graph.outputs.append(values[name])
    return copy


@contextmanager
def runnable(model: ir.Model) -> Iterator[bytes | Path]:
    """The model in the form a runner takes: bytes, or a temporary file where it is too large."""
    if model_bytes(model) < EXTERNAL_DATA_THRESHOLD:
        yield serialize(_internal(model))
        return
    with tempfile.TemporaryDirectory(prefix="ptq-") as folder:
        path = Path(folder) / "model.onnx"
        ir.save(model, path, external_data="model.onnx.data")
        yield path


def _internal(model: ir.Model) -> ir.Model:
    """Bring constants that lie in other files into memory (mapped ones are small here)."""
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = ir.tensor(value.const_value.numpy(), name=value.name)
    return model


def check_writable(path: Path) -> None:
    """Raise InputError unless a file can be made there; asked before any work is done."""
    folder = path.parent
    where = Location(file=str(path))
    if path.is_dir():
        raise InputError("is a folder, expected a file name for the output", location=where)
    if not folder.is_dir():
        raise InputError(f"the folder '{folder}' does not exist", location=where)
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".ptq-"):
            pass
    except OSError as error:
        raise InputError(
            f"the folder '{folder}' cannot be written to: {error.strerror}",
            location=where,
            hint="choose another output with -o",
        ) from error


def data_name(path: Path) -> str:
    """Of the file beside a model's for weights that are too large for it."""
    return path.name + ".data"


def save_model(
    model: ir.Model, path: Path, beside: Mapping[str, bytes] | None = None
) -> list[Path]:
    """Write the model and return its files: one, or two where the weights need their own.

    Files ``beside`` it, by their names, are written with it and not returned.

    Everything is written to temporary files in the same folder first and renamed at the end, so an
    interrupted run leaves what was there before.
    """
    large = model_bytes(model) >= EXTERNAL_DATA_THRESHOLD
    with tempfile.TemporaryDirectory(prefix=".ptq-", dir=path.parent) as folder:
        scratch = Path(folder) / path.name
        data = data_name(path)
        if large:
            ir.save(model, scratch, external_data=data)
            names = [data, path.name]  # the model last: it is what others look for
        else:
            scratch.write_bytes(serialize(_internal(model)))
            names = [path.name]
        for name, content in (beside or {}).items():
            (Path(folder) / name).write_bytes(content)
        for name in (*(beside or {}), *names):
            os.replace(Path(folder) / name, path.parent / name)
    return [path.parent / name for name in reversed(names)]
