"""Makes everything in this folder that is not text: digits.onnx, calib/ and eval/.

Nothing of ptq is needed, and ptq does not need this script. It runs for a few minutes on a CPU, in
a virtual environment of its own:

    python3 -m venv /tmp/digits
    /tmp/digits/bin/pip install torch scikit-learn onnx onnxruntime opencv-python-headless
    /tmp/digits/bin/python examples/digits/train.py
"""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import torch
from evaluate import HERE, INPUT_SIZE, load_eval, open_model, predict, prepare
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits
from torch import nn

SEED = 0
EPOCHS = 40
BATCH = 64
LEARNING_RATE = 3e-3  # peak of a one-cycle schedule

EVAL_FROM = 1415  # neighbours are by one writer; here begins the third last one (scikit-learn MOOC)
CALIB_COUNT = 200

PICTURE_SIZE = 28
PIXEL = 3  # an 8x8 digit becomes 24x24, with a margin of 2
NOISE = 0.05  # standard deviation, in the network's units (-1..1)

STEM = 32
BLOCKS = (  # expanded channels, output channels, stride
    (96, 32, 1),
    (96, 64, 2),
    (192, 64, 1),
    (192, 96, 2),
    (288, 96, 1),
)
OPSET = 17
IR_VERSION = 8  # the one of opset 17

# ----------------------------------------------------------------------------------- pictures


def draw(pixels: NDArray[Any], rng: np.random.Generator, *, jitter: bool) -> NDArray[np.uint8]:
    """An RGB picture of an 8x8 digit (0..16), in dark ink on light paper, both of random colour.

    Args:
        pixels: the digit.
        rng: chooses the colours and the jitter.
        jitter: also turn, scale and shift the digit a little.
    """
    turn, scale, shift = 0.0, float(PIXEL), np.zeros(2)
    if jitter:
        turn = np.deg2rad(rng.uniform(-12, 12))
        scale *= rng.uniform(0.85, 1.15)
        shift = rng.uniform(-2, 2, 2)
    cosine, sine = scale * np.cos(turn), scale * np.sin(turn)
    matrix = np.array([[cosine, -sine], [sine, cosine]])
    middle_to_middle = (PICTURE_SIZE - 1) / 2 + shift - matrix @ np.full(2, (8 - 1) / 2)
    ink = cv2.warpAffine(
        (pixels / 16).astype(np.float32),
        np.column_stack([matrix, middle_to_middle]),
        (PICTURE_SIZE, PICTURE_SIZE),
        flags=cv2.INTER_CUBIC,
    )
    ink = np.clip(ink, 0, 1)[..., np.newaxis]
    paper_colour, ink_colour = rng.uniform(160, 255, 3), rng.uniform(0, 110, 3)
    return np.rint(paper_colour * (1 - ink) + ink_colour * ink).astype(np.uint8)


def write_pictures(
    folder: Path, digits: NDArray[Any], labels: NDArray[Any], numbers: NDArray[Any]
) -> list[str]:
    """A PNG for each of the numbered digits; returns the file names.

    The name starts with the number, not with the digit: ptq calibrates on the first files in the
    order of their names, and these have to be a mixture of all digits.
    """
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        old.unlink()
    rng = np.random.default_rng(SEED)
    names = [f"{number:04}_digit{labels[number]}.png" for number in numbers]
    for name, number in zip(names, numbers, strict=True):
        picture = cv2.cvtColor(draw(digits[number], rng, jitter=False), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(folder / name), picture, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    return names


# ------------------------------------------------------------------------------------ network


class ConvBN(nn.Module):
    """Convolution, batch normalization and (except at the end of a block) ReLU6."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
        relu6: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(outputs)
        self.relu6 = relu6

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The activations, shape (batch, outputs, height / stride, width / stride)."""
        y = self.bn(self.conv(x))
        return nn.functional.relu6(y) if self.relu6 else y


class Block(nn.Module):
    """Inverted residual block of MobileNetV2 (Sandler et al. 2018)."""

    def __init__(self, inputs: int, expanded: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.expand = ConvBN(inputs, expanded, 1)
        self.depthwise = ConvBN(expanded, expanded, 3, stride=stride, groups=expanded)
        self.project = ConvBN(expanded, outputs, 1, relu6=False)
        self.residual = inputs == outputs and stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The block's output, added to its input where the shapes are the same."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.residual else y


class Digits(nn.Module):
    """The whole network."""

    def __init__(self) -> None:
        super().__init__()
        inputs = (STEM, *(outputs for _, outputs, _ in BLOCKS))
        self.stem = ConvBN(3, STEM, 3)
        self.blocks = nn.Sequential(
            *(Block(channels, *block) for channels, block in zip(inputs, BLOCKS, strict=False))
        )
        self.classifier = nn.Linear(inputs[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits, shape (batch, 10)."""
        return self.classifier(self.blocks(self.stem(x)).mean(dim=(2, 3)))


def train(digits: NDArray[Any], labels: NDArray[Any]) -> Digits:
    """A network trained on fresh drawings of the digits in every epoch."""
    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED + 1)  # other colours than those of the pictures in calib/
    net = Digits()
    steps = EPOCHS * (len(digits) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)
    for epoch in range(EPOCHS):
        order = rng.permutation(len(digits))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            batch = order[start : start + BATCH]
            x = np.concatenate([prepare(draw(digits[i], rng, jitter=True)) for i in batch])
            x += rng.normal(scale=NOISE, size=x.shape).astype(np.float32)
            loss = loss_of(net(torch.from_numpy(x)), torch.from_numpy(labels[batch]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1:2}/{EPOCHS}  loss of the last batch {loss.item():.4f}", flush=True)
    return net.eval()


# ------------------------------------------------------------------------------------- export


class Exporter:
    """Collects the nodes and weights of an ONNX graph.

    Written by hand, because torch's exporters fold the batch normalization or choose their own
    names; a node, its output and the prefix of its weights have one and the same name here.
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def node(self, op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns its output."""
        self.nodes.append(helper.make_node(op_type, inputs, [name], name=name, **attributes))
        return name

    def weight(self, name: str, values: torch.Tensor) -> str:
        """Add a constant; returns its name."""
        self.weights.append(numpy_helper.from_array(values.detach().numpy(), name))
        return name

    def conv_bn(self, name: str, x: str, layer: ConvBN) -> str:
        """Add Conv, BatchNormalization and Clip (ONNX has no ReLU6)."""
        conv, bn = layer.conv, layer.bn
        y = self.node(
            "Conv",
            f"{name}/conv",
            x,
            self.weight(f"{name}/conv/weight", conv.weight),
            kernel_shape=conv.kernel_size,
            strides=conv.stride,
            pads=[*conv.padding, *conv.padding],
            group=conv.groups,
        )
        y = self.node(
            "BatchNormalization",
            f"{name}/bn",
            y,
            self.weight(f"{name}/bn/scale", bn.weight),
            self.weight(f"{name}/bn/bias", bn.bias),
            self.weight(f"{name}/bn/mean", bn.running_mean),
            self.weight(f"{name}/bn/var", bn.running_var),
            epsilon=bn.eps,
        )
        return self.node("Clip", f"{name}/relu6", y, "zero", "six") if layer.relu6 else y


def export(net: Digits) -> onnx.ModelProto:
    """The network as ONNX: input ``image`` (batch, 3, 32, 32), output ``logits`` (batch, 10)."""
    graph = Exporter()
    graph.weight("zero", torch.tensor(0.0))
    graph.weight("six", torch.tensor(6.0))
    x = graph.conv_bn("stem", "image", net.stem)
    for number, block in enumerate(net.blocks, start=1):
        name = f"block{number}"
        y = graph.conv_bn(f"{name}/expand", x, block.expand)
        y = graph.conv_bn(f"{name}/depthwise", y, block.depthwise)
        y = graph.conv_bn(f"{name}/project", y, block.project)
        x = graph.node("Add", f"{name}/add", x, y) if block.residual else y
    x = graph.node("GlobalAveragePool", "classifier/pool", x)
    x = graph.node("Flatten", "classifier/flatten", x)
    weight = graph.weight("classifier/gemm/weight", net.classifier.weight)
    bias = graph.weight("classifier/gemm/bias", net.classifier.bias)
    graph.node("Gemm", "classifier/gemm", x, weight, bias, transB=1)
    graph.nodes[-1].output[0] = "logits"

    image_shape = ["batch", 3, INPUT_SIZE, INPUT_SIZE]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "digits",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, image_shape)],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
            graph.weights,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="ptq/examples/digits",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Draw, train, export, and say how good the exported file is."""
    digits, labels = load_digits(return_X_y=True)
    digits, labels = digits.reshape(-1, 8, 8), labels.astype(np.int64)
    train_numbers, eval_numbers = np.split(np.arange(len(digits)), [EVAL_FROM])
    calib_numbers = np.random.default_rng(SEED).choice(train_numbers, CALIB_COUNT, replace=False)

    write_pictures(HERE / "calib", digits, labels, np.sort(calib_numbers))
    names = write_pictures(HERE / "eval", digits, labels, eval_numbers)
    with (HERE / "eval" / "labels.csv").open("w", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(("file", "class_index"))
        rows.writerows(zip(names, labels[eval_numbers], strict=True))

    net = train(digits[train_numbers], labels[train_numbers])
    onnx.save(export(net), HERE / "digits.onnx")

    pictures, truth = load_eval()
    right = int((predict(open_model(HERE / "digits.onnx"), pictures) == truth).sum())
    print(f"digits.onnx: {right} of {len(truth)} right ({100 * right / len(truth):.2f}%)")


if __name__ == "__main__":
    main()
