"""Pictures made here, against a plain OpenCV and NumPy formulation and against closed forms."""

import itertools
import struct
import subprocess
import sys

import cv2
import numpy as np
import pytest

from ptq_core.api import ModelInput
from ptq_preprocess_image import SUFFIXES, ImageOptions, ptq_preprocessors
from ptq_preprocess_image.pipeline import normalization_table, preprocess

(IMAGE,) = ptq_preprocessors()
HEIGHT, WIDTH = 61, 83  # odd, so that a centre is not in the middle
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
RESIZE = {"resize_height": 40, "resize_width": 55}
CROP = {"center_crop_height": 33, "center_crop_width": 30}


def reader(shape=(1, 3, None, None), dtype="float32", layout=None, **keys):
    model_input = ModelInput(name="x", dtype=dtype, shape=shape, layout=layout)
    return IMAGE.factory(model_input, ImageOptions(**keys))


def message(call, *arguments, **keys):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the text
        call(*arguments, **keys)
    return str(caught.value)


def picture(height=HEIGHT, width=WIDTH):
    """Gradients and noise, BGR."""
    noise = np.random.default_rng(3).normal(0, 12, (height, width, 3))
    y, x = np.mgrid[:height, :width]
    ramps = np.stack([x * 255 / width, y * 255 / height, (x + y) % 256], axis=-1)
    return np.clip(ramps + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def file(tmp_path):
    """Writes bytes, or encodes a BGR picture; the name has letters outside ASCII."""

    def write(content, suffix=".png", parameters=()):
        path = tmp_path / f"bïld 图{suffix}"
        if not isinstance(content, bytes):
            content = cv2.imencode(suffix, content, list(parameters))[1].tobytes()
        path.write_bytes(content)
        return path

    return write


def reference(path, keys):
    """The steps as they are documented, one after the other over the whole picture; HWC."""
    bgr = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR)
    values = {
        "RGB": bgr[:, :, ::-1],
        "GRAY": cv2.cvtColor(bgr, cv2.COLOR_BGR2GRAY)[:, :, None],
    }.get(keys.get("image_to_format"), bgr).astype(np.float32)
    if "normalize_mean" in keys:
        values = values - np.float32(keys["normalize_mean"])
    if "normalize_std" in keys:
        values = values / np.float32(keys["normalize_std"])
    if "resize_method" in keys:
        method = getattr(cv2, f"INTER_{keys['resize_method']}")
        size = (keys["resize_width"], keys["resize_height"])
        values = cv2.resize(values, size, interpolation=method)
        values = values.reshape(*values.shape[:2], -1)
    if "center_crop_height" in keys:
        height, width = keys["center_crop_height"], keys["center_crop_width"]
        top, left = (values.shape[0] - height) // 2, (values.shape[1] - width) // 2
        values = values[top : top + height, left : left + width]
    return values


# -------------------------------------------------------------------------------- against the book


@pytest.mark.parametrize("crop", [{}, CROP])
@pytest.mark.parametrize("method", [None, "LINEAR", "NEAREST", "CUBIC"])
@pytest.mark.parametrize("normalize", ["", "mean", "std", "mean std"])
@pytest.mark.parametrize("image_to_format", [None, "RGB", "BGR", "GRAY"])
def test_every_combination_equals_the_reference_bit_for_bit(
    file, image_to_format, normalize, method, crop
):
    channels = 1 if image_to_format == "GRAY" else 3
    keys = dict(crop)
    if image_to_format:
        keys |= {"image_to_format": image_to_format}
    if "mean" in normalize:
        keys |= {"normalize_mean": MEAN[:channels]}
    if "std" in normalize:
        keys |= {"normalize_std": STD[:channels]}
    if method:
        keys |= {**RESIZE, "resize_method": method}
    for suffix in (".jpg", ".png"):
        path = file(picture(), suffix)
        expected = reference(path, keys)
        nchw = reader((1, channels, None, None), **keys).read(path)
        np.testing.assert_array_equal(nchw, expected.transpose(2, 0, 1)[None], strict=True)
        nhwc = reader((1, None, None, channels), **keys).read(path)
        np.testing.assert_array_equal(nhwc, expected[None], strict=True)
        assert nchw.flags.c_contiguous
        assert nhwc.flags.c_contiguous


@pytest.mark.parametrize("method", [None, "NEAREST"])
def test_picking_pixels_first_changes_no_bit(method):
    # Cropping (and NEAREST) before or after the arithmetic: the product does the former.
    keys = {"image_to_format": "RGB", "normalize_mean": MEAN, "normalize_std": STD}
    if method:
        keys |= {**RESIZE, "resize_method": method}
    whole = ImageOptions(**keys)
    cropped = ImageOptions(**keys, **CROP)
    table = normalization_table(whole)
    late = preprocess(picture(), whole, table)
    top, left = (late.shape[0] - 33) // 2, (late.shape[1] - 30) // 2
    early = preprocess(picture(), cropped, table)
    np.testing.assert_array_equal(early, late[top : top + 33, left : left + 30], strict=True)


def test_normalization_is_the_float32_formula_for_every_pixel_value():
    options = ImageOptions(normalize_mean=MEAN, normalize_std=STD)
    table = normalization_table(options)
    for value, channel in itertools.product(range(256), range(3)):
        expected = (np.float32(value) - np.float32(MEAN[channel])) / np.float32(STD[channel])
        assert table[0, value, channel] == expected


# ------------------------------------------------------------------------------------ closed forms


def gray(values):
    return np.repeat(np.array(values, np.uint8)[:, :, None], 3, axis=2)


def resized(file, values, size, method, **keys):
    options = {"image_to_format": "GRAY", "resize_method": method, **keys}
    options |= {"resize_height": size[0], "resize_width": size[1]}
    return reader((1, 1, None, None), **options).read(file(gray(values)))[0, 0]


def test_linear_has_half_pixel_centres(file):
    # Output pixel i lies at (i + 0.5) / 2 - 0.5: a quarter and three quarters, clamped outside.
    expected = [[0, 25, 75, 100], [50, 75, 125, 150], [150, 175, 225, 250], [200, 225, 275, 300]]
    expected = np.array(expected) / 2
    found = resized(file, [[0, 50], [100, 150]], (4, 4), "LINEAR")
    np.testing.assert_array_equal(found, expected)


def test_linear_does_not_antialias(file):
    # To a quarter of the width: (i + 0.5) * 4 - 0.5 = 1.5, 5.5: the mean of two pixels of four.
    found = resized(file, [[0, 10, 30, 200, 0, 0, 50, 0]], (1, 2), "LINEAR")
    assert found.tolist() == [[20, 25]]


def test_linear_keeps_fractions_of_8_bit_values(file):
    assert resized(file, [[0, 1]], (1, 4), "LINEAR").tolist() == [[0, 0.25, 0.75, 1]]


def test_nearest_rounds_down(file):
    found = resized(file, [[10, 20, 30, 40, 50]], (1, 8), "NEAREST")
    assert found.tolist() == [[10, 10, 20, 20, 30, 40, 40, 50]]  # floor(i * 5 / 8)


def test_cubic_is_the_kernel_with_a_of_minus_three_quarters(file):
    values = np.array([3, 80, 20, 250, 0, 7, 90, 120], float)
    a = -0.75

    def weight(t):
        t = abs(t)
        if t <= 1:
            return (a + 2) * t**3 - (a + 3) * t**2 + 1
        return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0

    expected = []
    for i in range(16):
        centre = (i + 0.5) / 2 - 0.5
        near = range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3)
        expected.append(sum(weight(centre - k) * values[np.clip(k, 0, 7)] for k in near))
    found = resized(file, [values], (1, 16), "CUBIC")
    # OpenCV's float32 weights and sums; values go up to 250.
    np.testing.assert_allclose(found[0], expected, atol=1e-4)
    assert found.min() < 0  # it overshoots, and nothing is clipped


@pytest.mark.parametrize(
    ("size", "expected"), [((1, 2), [[6, 7]]), ((3, 1), [[1], [6], [11]]), ((2, 3), None)]
)
def test_the_centre_of_what_has_no_middle_is_up_and_left(file, size, expected):
    values = np.arange(15).reshape(3, 5)  # a crop of 2 of 5 starts at 1, one of 2 of 3 at 0
    crop = {"center_crop_height": size[0], "center_crop_width": size[1]}
    keys = {"image_to_format": "GRAY", **crop}
    found = reader((1, 1, None, None), **keys).read(file(gray(values)))[0, 0]
    expected = {
        (1, 2): [[6, 7]],
        (3, 1): [[2], [7], [12]],
        (2, 3): [[1, 2, 3], [6, 7, 8]],
    }[size]
    assert found.tolist() == expected


def test_colours_golden(file):
    path = file(np.array([[[255, 0, 0]], [[0, 128, 64]]], np.uint8))  # BGR: blue, a green
    raw = reader().read(path)
    assert raw[0, :, :, 0].T.tolist() == [[255, 0, 0], [0, 128, 64]]
    rgb = reader(image_to_format="RGB").read(path)
    assert rgb[0, :, :, 0].T.tolist() == [[0, 0, 255], [64, 128, 0]]
    # 0.114 * 255 = 29.07, 0.587 * 128 + 0.299 * 64 = 94.27
    assert reader((1, 1, None, None), image_to_format="GRAY").read(path).ravel().tolist() == [
        29,
        94,
    ]


def test_mean_and_std_are_in_the_order_of_the_sample_s_channels(file):
    keys = {"normalize_mean": (1, 2, 3), "normalize_std": (1, 2, 4)}
    path = file(np.array([[[11, 22, 33]]], np.uint8))
    assert reader(**keys).read(path).ravel().tolist() == [10, 10, 7.5]
    rgb = reader(image_to_format="RGB", **keys).read(path)
    assert rgb.ravel().tolist() == [32, 10, 2]


# --------------------------------------------------------------------------------- kinds of files


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_read(file, suffix):
    keys = {"image_to_format": "GRAY"} if suffix == ".pgm" else {}
    content = picture() if suffix != ".pgm" else cv2.cvtColor(picture(), cv2.COLOR_BGR2GRAY)
    found = reader((1, None, None, 1 if keys else 3), **keys).read(file(content, suffix))
    lossy = suffix in {".jpg", ".jpeg", ".webp", ".jp2"}
    # The noise is what compression drops; it has a standard deviation of 12.
    difference = np.abs(found[0] - content.reshape(*found[0].shape)).mean()
    assert difference < 12 if lossy else difference == 0


def test_gray_is_expanded_and_alpha_dropped(file):
    values = cv2.cvtColor(picture(), cv2.COLOR_BGR2GRAY)
    found = reader((1, None, None, 3)).read(file(values))
    np.testing.assert_array_equal(found[0], np.repeat(values[:, :, None], 3, axis=2))
    alpha = np.dstack([picture(), np.full((HEIGHT, WIDTH), 7, np.uint8)])
    found = reader((1, None, None, 3)).read(file(alpha))
    np.testing.assert_array_equal(found[0], picture())


def test_sixteen_bits_become_eight(file):
    values = picture().astype(np.uint16) * 256 + 200
    np.testing.assert_array_equal(reader((1, None, None, 3)).read(file(values))[0], picture())


def exif(orientation):
    """An APP1 segment with nothing but the orientation, behind the start-of-image marker."""
    directory = struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    body = b"Exif\0\0" + b"II*\0" + struct.pack("<I", 8) + directory
    return b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (6, lambda x: np.rot90(x, -1)),
        (8, lambda x: np.rot90(x)),
    ],
)
def test_the_exif_orientation_is_applied(file, orientation, turn):
    plain = file(picture(), ".jpg").read_bytes()
    upright = reader((1, None, None, 3)).read(file(plain, ".jpg"))[0]
    path = file(plain[:2] + exif(orientation) + plain[2:], ".jpg")
    np.testing.assert_array_equal(reader((1, None, None, 3)).read(path)[0], turn(upright))


# --------------------------------------------------------------------------------- element types


@pytest.mark.parametrize("dtype", ["float16", "float64", "uint8"])
def test_element_types(file, dtype):
    found = reader((1, None, None, 3), dtype).read(file(picture()))
    np.testing.assert_array_equal(found[0], picture().astype(dtype), strict=True)


def test_integers_are_rounded_half_to_even_and_clipped(file):
    keys = {"image_to_format": "GRAY", "resize_height": 1}
    linear = reader((1, 1, 1, None), "uint8", resize_width=3, resize_method="LINEAR", **keys)
    halves = linear.read(file(gray([[0, 1, 1, 2, 2, 3]])))  # 0.5, 1.5, 2.5
    np.testing.assert_array_equal(halves, np.array([[[[0, 2, 2]]]], np.uint8), strict=True)
    keys |= {"resize_width": 8, "resize_method": "CUBIC"}
    step = file(gray([[0, 0, 255, 255]]))
    exact = reader((1, 1, 1, None), **keys).read(step)
    assert exact.min() < -1
    assert exact.max() > 256
    found = reader((1, 1, 1, None), "uint8", **keys).read(step)
    assert (found.min(), found.max()) == (0, 255)


# ---------------------------------------------------------------------------------- broken files

JPEGS = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
    "best": [cv2.IMWRITE_JPEG_QUALITY, 100],
}


@pytest.mark.parametrize("kind", [*JPEGS, "png"])
def test_a_truncated_picture_is_refused_wherever_it_ends(file, kind):
    suffix = ".png" if kind == "png" else ".jpg"
    whole = file(picture(), suffix, JPEGS.get(kind, [])).read_bytes()
    name = "PNG" if kind == "png" else "JPEG"
    images = reader()
    assert images.read(file(whole, suffix)).shape == (1, 3, HEIGHT, WIDTH)
    for size in itertools.chain(range(8, len(whole) - 40, 23), range(len(whole) - 40, len(whole))):
        assert f"truncated {name}" in message(images.read, file(whole[:size], suffix)), size
    zeros = whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2)
    assert f"truncated {name}" in message(images.read, file(zeros, suffix))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_bytes_behind_the_end_do_no_harm(file, suffix):
    path = file(picture(), suffix)
    expected = reader().read(path)
    path.write_bytes(path.read_bytes() + b"a phone's video" * 1000)
    np.testing.assert_array_equal(reader().read(path), expected)


def test_the_end_of_a_thumbnail_is_not_the_picture_s(file):
    thumbnail = cv2.imencode(".jpg", picture(8, 8))[1].tobytes()
    segment = b"\xff\xe2" + struct.pack(">H", len(thumbnail) + 2) + thumbnail
    whole = file(picture(), ".jpg").read_bytes()
    whole = whole[:2] + segment + whole[2:]
    reader().read(file(whole, ".jpg"))
    assert "truncated JPEG" in message(reader().read, file(whole[:-2], ".jpg"))
    assert "truncated JPEG" in message(reader().read, file(whole[: 2 + len(segment)], ".jpg"))


def test_files_that_are_no_pictures(file, tmp_path):
    text = message(reader().read, file(b"file,class\n"))
    assert text == "not a decodable image: 11 bytes that start with 66 69 6c 65"
    assert "empty" in message(reader().read, file(b""))
    with pytest.raises(FileNotFoundError):
        reader().read(tmp_path / "missing.png")


# ---------------------------------------------------------------------- pictures that do not fit


def test_a_crop_larger_than_the_picture(file):
    keys = {"center_crop_height": HEIGHT + 1, "center_crop_width": 5}
    text = message(reader(**keys).read, file(picture()))
    assert "is 61x83 (height x width) before the crop" in text
    assert "ask for 62x5" in text
    assert "resize_height, resize_width and resize_method" in text


@pytest.mark.parametrize(("shape", "layout"), [((1, 3, 8, 9), "NCHW"), ((1, 8, 9, 3), "NHWC")])
def test_another_size_than_the_model_s_is_found_when_reading(file, shape, layout):
    text = message(reader(shape, layout=layout).read, file(picture()))
    assert "picture is 61x83 (height x width), input 'x' takes 8x9: set resize_height" in text
    text = message(reader((1, 3, None, 9)).read, file(picture()))
    assert "takes anyx9" in text


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        (CROP, "is 33x30 (height x width), input 'x' takes 8x9: change center_crop_height"),
        ({**RESIZE, "resize_method": "CUBIC"}, "is 40x55 (height x width), input 'x' takes 8x9"),
    ],
)
def test_another_size_than_the_model_s_is_found_before_reading_where_keys_tell(keys, expected):
    assert expected in message(reader, (1, 3, 8, 9), **keys)


@pytest.mark.parametrize(
    ("shape", "keys", "expected"),
    [
        ((1, 1, 8, 8), {}, "takes 1 channel(s), the picture has 3: set image_to_format = GRAY"),
        ((1, 8, 8, 1), {"image_to_format": "RGB"}, "set image_to_format = GRAY"),
        ((1, 3, 8, 8), {"image_to_format": "GRAY"}, "set image_to_format to RGB or BGR"),
        ((1, 8, 8, 3), {"layout": "NCHW"}, "takes 8 channel(s), the picture has 3: set input_dat"),
        ((1, 4, 8, 8), {"layout": "NCHW"}, "takes 4 channel(s), the picture has 3: give NPY"),
        ((1, 4, 8, 8), {}, "set input_data_format to NCHW or NHWC"),
        ((1, 3, 8, 3), {}, "set input_data_format to NCHW or NHWC"),
        ((None, None, None, None), {}, "[?, ?, ?, ?], which does not tell where its channels"),
        ((1, 3, 8), {}, "four dimensions"),
        ((8, 3, 8, 8), {}, "takes batches of 8"),
        ((1, 3, 8, 8), {"dtype": "int64"}, "is int64"),
        ((1, 3, 8, 8), {"dtype": "uint8", "normalize_mean": MEAN}, "leave out normalize_mean"),
    ],
)
def test_inputs_that_no_picture_fills(shape, keys, expected):
    assert expected in message(reader, shape, **keys)


def test_all_problems_of_an_input_are_told_at_once():
    text = message(reader, (2, 1, 8, 8), "int32", **CROP)
    for part in ("GRAY", "takes 8x8", "batches of 2", "int32"):
        assert part in text


@pytest.mark.parametrize(
    ("shape", "keys", "found"),
    [
        ((1, 3, None, None), {}, (1, 3, HEIGHT, WIDTH)),
        (("n", HEIGHT, WIDTH, 3), {}, (1, HEIGHT, WIDTH, 3)),
        ((1, 1, HEIGHT, WIDTH), {"image_to_format": "GRAY"}, (1, 1, HEIGHT, WIDTH)),
        ((1, 3, None, 1), {"center_crop_width": 1, "center_crop_height": 9}, (1, 3, 9, 1)),
        ((None,) * 4, {"layout": "NHWC"}, (1, HEIGHT, WIDTH, 3)),
    ],
)
def test_the_layout_is_found(file, shape, keys, found):
    assert reader(shape, **keys).read(file(picture())).shape == found


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({"resize_width": 4}, "resize_width is given without resize_height and resize_method"),
        (
            {"resize_width": 4, "resize_method": "LINEAR"},
            "resize_width and resize_method are given without resize_height",
        ),
        ({"center_crop_height": 4}, "center_crop_height is given without center_crop_width"),
        ({"center_crop_height": 0, "center_crop_width": 65536}, "center_crop_width is 65536"),
        ({"center_crop_height": 0, "center_crop_width": 65536}, "center_crop_height is 0"),
        (
            {**RESIZE, "resize_method": "LINEAR", **CROP, "center_crop_width": 56},
            "center_crop_width = 56 is more than resize_width = 55",
        ),
        ({"normalize_mean": (1,)}, "normalize_mean has 1 values, BGR (image_to_format is not set)"),
        ({"normalize_std": MEAN, "image_to_format": "GRAY"}, "GRAY has 1 channel(s)"),
        ({"normalize_std": (1, 0, 1)}, "a standard deviation is more than 0"),
        ({"normalize_mean": (1, float("nan"), 1)}, "not finite"),
    ],
)
def test_options_that_contradict_each_other(keys, expected):
    assert expected in message(ImageOptions, **keys)


def test_all_problems_of_the_options_are_told_at_once():
    text = message(ImageOptions, resize_width=4, center_crop_width=9, normalize_std=(0,))
    assert text.count(";") == 4


# ----------------------------------------------------------------------------------------- plugin


def test_importing_the_plugin_loads_no_opencv():
    code = (
        "import sys, ptq_preprocess_image as p; list(p.ptq_preprocessors());"
        "heavy = {'cv2', 'numpy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_decoding_takes_no_cores_from_the_inference(file):
    reader().read(file(picture()))
    assert cv2.getNumThreads() == 1
