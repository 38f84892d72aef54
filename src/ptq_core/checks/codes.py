"""What every code of ``ptq check`` means and what to do about it; documentation is made from this.

Codes are stable. Their first letter says what they are about: X operators, S shapes, Q scales and
zero points, A activations, W weights, B biases, O outputs of layers, F activation functions behind
layers, P data movers, R residuals, D the border between integers and floats.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ptq_core.errors import InputError, did_you_mean

_FAMILY = "O-Q-BEFORE-"  # followed by the activation's type


@dataclass(frozen=True, slots=True)
class Code:
    """What a code stands for.

    Attributes:
        title: what is wrong, a few words.
        explanation: what is looked at, and when it counts.
        fix: what to do.
    """

    title: str
    explanation: str
    fix: str


CODES: Mapping[str, Code] = {
    "X-OPSET": Code(
        "the opset is newer than the device's importer takes",
        "The opset of ONNX's own operators is compared with the newest one that the target names.",
        "Export the float model with an older opset, or convert it with onnx.version_converter, "
        "and quantize it again.",
    ),
    "X-DOMAIN": Code(
        "an operator of a domain that the device does not know",
        "Every node's domain is compared with those that the target takes. A function of the "
        "model's own passes where what loads the model puts the function's body in its place "
        "first; then the nodes of the body are looked at instead.",
        "Write it with operators of ONNX itself; quantizers call this the QDQ format.",
    ),
    "X-OP-FORBIDDEN": Code(
        "an operator that the device refuses or computes wrongly",
        "Operators that the target lists as forbidden, each with the reason; those in the bodies "
        "of If and Loop and of functions count as well. What depends on constants only is no "
        "finding where what loads the model computes it first.",
        "Replace the operator in the float model; for one that quantization has put there, "
        "quantize for this target.",
    ),
    "X-OP-UNSUPPORTED": Code(
        "an operator that the device's importer does not know",
        "Where a target lists the operators that it takes, everything else is found here.",
        "Replace the operator in the float model, or split the model there.",
    ),
    "S-DYNAMIC-SHAPE": Code(
        "an input of the model has an open dimension",
        "Inputs whose shape has a symbol, an unknown size, or not even a known rank, for a target "
        "that compiles the model for fixed shapes.",
        "Fix the shapes: --input-shape 'NAME:1,3,224,224' of ptq quantize does it.",
    ),
    "Q-SCALE-NOT-CONST": Code(
        "a scale or zero point is computed while the model runs",
        "Scale and zero point of a QuantizeLinear or DequantizeLinear have to be initializers that "
        "nobody can override, or Constant nodes.",
        "Store the numbers as initializers, and take initializers off the list of graph inputs.",
    ),
    "Q-SCALE-NONPOS": Code(
        "a scale is not a positive number",
        "A scale that is zero, negative, infinite or not a number means nothing; runtimes divide "
        "by it.",
        "Calibrate again: the range that it was made from was empty or not finite.",
    ),
    "Q-SCALE-RANK1": Code(
        "a scale or zero point of an activation is a vector of one element",
        "The parameters of activations, and of constants that are computed with as in Add, have to "
        "be tensors of rank 0. Those of weights and biases may be vectors of one element.",
        "Reshape the scale and the zero point to rank 0 (shape []).",
    ),
    "Q-ZP-IMPLICIT": Code(
        "codes of less than 8 bits without a zero point input",
        "ONNX lets the zero point be left out and be 0. Importers know that for 8 bits; for int4 "
        "not all of them do.",
        "Add a zero point of 0, in the type of the codes.",
    ),
    "Q-ZP-NONZERO": Code(
        "the zero point of an activation is not that of a symmetric scheme",
        "For targets that compute without zero points: 0 for signed types, the middle (128 for "
        "uint8) for unsigned ones.",
        "Quantize activations symmetrically.",
    ),
    "Q-PAIR-MISMATCH": Code(
        "QuantizeLinear and the DequantizeLinear behind it do not agree",
        "A DequantizeLinear that reads the codes of a QuantizeLinear with another scale, zero "
        "point, axis or type gives other numbers than went in. A vector of equal entries is the "
        "same as one number.",
        "Give both the same scale, zero point, axis and type.",
    ),
    "A-DTYPE": Code(
        "activations have a type of codes that the device does not take",
        "The type of the codes that a QuantizeLinear of an activation makes, or that a "
        "DequantizeLinear reads where they come from elsewhere.",
        "Quantize for this target.",
    ),
    "A-PER-AXIS-ACT": Code(
        "an activation has several scales",
        "Integer kernels take one scale for a whole activation. Vectors of equal entries are no "
        "finding in front of a layer with float weights, where the target uses them to keep the "
        "layer in float.",
        "Use one scale for the tensor; scales per channel are for weights.",
    ),
    "A-S8-MULTI-CONSUMER": Code(
        "an int8 activation that the runtime cannot make uint8",
        "onnxruntime on x86 computes with uint8. It converts int8 activations while it loads, but "
        "only where their QuantizeLinear has one reader, and not in QLinearConv and "
        "QLinearMatMul. Equal QuantizeLinear of one tensor count as one: it makes them one.",
        "Quantize activations to uint8.",
    ),
    "A-OP-NOT-QUANTISABLE": Code(
        "quantized although the device has no integer form of the operator",
        "Found where an operator stands between DequantizeLinear and QuantizeLinear, the target "
        "has no integer form of it (or not with these attributes), and its constants are "
        "quantized, or the codes in front of it are of no use to anybody else. An operator that "
        "stands between two integer ones is no finding: somebody has to convert there.",
        "Leave the operator's inputs in float.",
    ),
    "W-DTYPE": Code(
        "weights have a type of codes that the device does not take, or not well",
        "The type of constant weights behind a DequantizeLinear, of layers whose activation is "
        "quantized too, and of MatMulInteger and ConvInteger. Weights of a layer that "
        "computes in float may have any type here.",
        "Quantize for this target.",
    ),
    "W-ASYM": Code(
        "weights have a zero point",
        "The zero point of weights has to be 0, or 128 for uint8.",
        "Quantize weights symmetrically.",
    ),
    "W-ASYM-PER-CHANNEL": Code(
        "weights with a scale per channel have zero points",
        "As W-ASYM, for weights with several scales only: for targets that take a zero point of a "
        "whole tensor.",
        "Quantize weights symmetrically, or with one scale per layer.",
    ),
    "W-AXIS": Code(
        "the scales of weights are not along the output channels",
        "The axis has to be 0 for Conv, 1 for ConvTranspose, the last for MatMul, and the output "
        "features' for Gemm (0 with transB, else 1). Scales of blocks have no such axis and are "
        "found here as well. A layer that computes in float may have its scales along any axis.",
        "Quantize the weights along the output channels; a scale per input channel cannot be "
        "taken out of the sum.",
    ),
    "W-ONE-SCALE": Code(
        "channels of unlike size share one scale",
        "8-bit weights with one scale, of an operator for which the target's rule says "
        "per_channel, where at least one output channel in twenty uses codes up to 15 at most, "
        "because others are much larger. Channels of fewer than 8 weights do not count.",
        "Quantize this layer with a scale for each output channel, or equalize channels first, as "
        "ptq does with per_channel=false.",
    ),
    "W-PER-CHANNEL-NOT-ALLOWED": Code(
        "the device takes one scale for the weights of this operator",
        "Several scales for the weights of an operator with integer activations, for which the "
        "target's rule does not say per_channel.",
        "Quantize this layer with one scale for all its weights.",
    ),
    "W-SKIP-UNGUARDED": Code(
        "the runtime will quantize a layer that was left in float",
        "A Conv, ConvTranspose or Gemm with float weights between DequantizeLinear and "
        "QuantizeLinear that alone reads its result, also with a Relu or Clip or data movers in "
        "between, where the runtime quantizes such layers by itself. Guarded is a layer with a "
        "DequantizeLinear of its own with one (equal) scale per channel, with an int32 bias behind "
        "a DequantizeLinear, or, for Gemm, with a float bias that is no vector.",
        "Feed the layer from a DequantizeLinear of its own whose scale and zero point are vectors "
        "of equal entries, one per channel (axis 1), as skip_quant_node does. A vector of one "
        "entry does not help: a layer with one input channel needs an int32 bias behind a "
        "DequantizeLinear, zeros if it has none.",
    ),
    "B-INT32-BIAS-DQ": Code(
        "a bias is stored as int32",
        "A bias behind a DequantizeLinear of int32, for targets that take biases as floats only.",
        "Keep biases in float32.",
    ),
    "B-QUANTISED": Code(
        "a bias is quantized to another type than int32",
        "A bias of 8 or 16 bits, or a float bias between QuantizeLinear and DequantizeLinear. It "
        "is added to sums of products, which have 32 bits.",
        "Keep biases in float32, or store them as int32 with the scale s_x * s_w.",
    ),
    "B-SCALE": Code(
        "the scale of an int32 bias is not that of the products",
        "A bias is added to sums of products without conversion if its scale is that of the "
        "activation times that of the weights, for every channel; up to 1e-5 of it (1e-2 where the "
        "scales are float16).",
        "Quantize the bias with s_x * s_w, after the last change of these scales.",
    ),
    "B-SCALE-SHAPE": Code(
        "a bias has a scale for each channel although the weights have one",
        "An int32 bias with several scales in a layer whose weights have one scale. What it stands "
        "for is the same if the scales are equal; not every device reads it so.",
        "Give the bias one scale (rank 0), as the weights have.",
    ),
    "O-NO-Q": Code(
        "a layer on integers has no QuantizeLinear of its own behind it",
        "For operators that the target computes in integers only with an integer result: every "
        "reader of the result, behind the activation that is merged, has to be a QuantizeLinear "
        "with the same parameters, and it must not be an output of the model. Floats for other "
        "readers come out of the DequantizeLinear.",
        "Put QuantizeLinear and DequantizeLinear behind the layer and let everybody read from "
        "there.",
    ),
    "O-GEMM-F32BIAS-NO-Q": Code(
        "a Gemm on integers has a float bias that keeps it in float",
        "A Gemm whose activation and weights come out of a DequantizeLinear; the runtime has an "
        "integer kernel of it with a float bias only where a QuantizeLinear follows and the bias "
        "is a vector.",
        "Store the bias as int32 with the scale s_x * s_w, or quantize the result and make the "
        "bias a vector.",
    ),
    "O-MATMUL-1D-BIAS-NO-Q": Code(
        "a MatMul on integers has a float bias that keeps it in float",
        "A MatMul whose operands come out of DequantizeLinear, followed by an Add of a vector, or "
        "of a matrix where the activation has two axes: the runtime merges MatMul and Add into a "
        "float Gemm before it looks for integers. With a vector it has an integer kernel where a "
        "QuantizeLinear follows.",
        "Store the bias as int32 with the scale s_x * s_w, or as a vector with a QuantizeLinear "
        "behind the sum. Where the activation has more than two axes, the shape [1, N] helps too.",
    ),
    "O-Q-BEFORE-ACT": Code(
        "QuantizeLinear stands between a layer and its activation",
        "The end of the code names the activation: O-Q-BEFORE-RELU, O-Q-BEFORE-CLIP and so on. "
        "Found where the result of a layer on integers, or of an Add, Mul or Concat, is quantized "
        "in front of an activation that the device would merge into it (for targets with float "
        "results also BatchNormalization, Sigmoid and HardSwish, and behind layers in float), and "
        "no other integer operator reads these codes. Where results are integers, a Relu or Clip "
        "that changes no code is no finding.",
        "Remove the pair between the operator and the activation; quantize behind the activation.",
    ),
    "F-ACT-NOT-REDUNDANT": Code(
        "the quantized range reaches beyond the Relu or Clip in front of it",
        "A runtime drops a Relu or Clip between an integer layer and its QuantizeLinear if the "
        "codes cannot leave the activation's bounds: the smallest and the largest code, "
        "dequantized in float32, may be outside by at most 1.19e-7 (onnxruntime 1.32 takes half a "
        "step for Clip). Relu needs the lowest code as zero point.",
        "Calibrate behind the activation, and choose scale and zero point within its bounds; a "
        "scale that is too large by rounding is reduced to the next smaller float32.",
    ),
    "F-FIXED-ENCODING": Code(
        "the result does not have the scale and zero point that the device demands",
        "Results with more than 8 bits of operators for which the target names fixed parameters, "
        "converted to the width of the codes. Codes of 8 bits are looked up in a table, which "
        "takes any parameters.",
        "Give the result's QuantizeLinear the parameters in the message.",
    ),
    "P-PASSTHROUGH-QPARAMS": Code(
        "a data mover has other parameters behind it than in front",
        "Operators that only move numbers (Reshape, Transpose, MaxPool and others that the target "
        "lists) move codes as well as long as scale, zero point and type stay the same.",
        "Give the QuantizeLinear behind the operator the parameters of the one in front.",
    ),
    "R-RESIDUAL": Code(
        "the wrong operands of a residual Add are quantized",
        "Where a device adds while it convolves, the convolution's own result has to reach the Add "
        "in float, and the other operand as integers. Found where both are quantized although one "
        "comes straight from a convolution, or none is.",
        "Quantize the shortcut only.",
    ),
    "D-FLOAT-EDGE-IN": Code(
        "an operator reads integers and floats",
        "An operator of which the device has an integer form, with one operand behind a "
        "DequantizeLinear and another one not: then it is computed in float. What is looked at: "
        "weights and activations, no biases, and elementwise operators only where their result is "
        "quantized. Layers with float weights are no finding where the target guards them "
        "(W-SKIP-UNGUARDED) or where an integer operator in front of them or beside them needs the "
        "codes, nor are layers with quantized weights and a float activation: they compute in "
        "float, with smaller weights.",
        "Quantize the other operand too, or neither.",
    ),
    "D-NO-OUTPUT-Q": Code(
        "an operator on integers has a float result",
        "An operator whose operands all come out of DequantizeLinear and whose result is read by "
        "something else than QuantizeLinear, or is an output of the model, for targets where that "
        "cuts a float island out of the integers. Layers with weights that need an integer result "
        "are O-NO-Q.",
        "Put QuantizeLinear and DequantizeLinear behind the operator and let everybody read from "
        "there, also the model's output.",
    ),
}


def rule_code(code: str) -> str:
    """The code under which a finding's rule is listed and documented."""
    return f"{_FAMILY}ACT" if code.startswith(_FAMILY) else code


def explain(code: str) -> Code:
    """What a code stands for, in any case and with the name of an activation too.

    Raises:
        InputError: there is no such code.
    """
    found = CODES.get(rule_code(code.upper()))
    if found is None:
        near = did_you_mean(code, CODES)
        raise InputError(f"no code '{code}'", hint=near if "did you" in near else _all())
    return found


def _all() -> str:
    return f"there are: {', '.join(CODES)}; a target's own codes are on the target's page"
