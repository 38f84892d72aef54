"""``--data`` and the flags for pictures: which config they mean."""

from __future__ import annotations

import pytest

from ptq_core.cli.data import DataFlags, data_values
from ptq_core.cli.pictures import PictureFlags, parse_size, picture_values
from ptq_core.errors import InputError
from ptq_core.plugins import discover
from ptq_core.types import ModelInput

IMAGE = ModelInput(name="image", dtype="float32", shape=("n", 3, 24, 32), layout="NCHW")
GRAY = ModelInput(name="image", dtype="float32", shape=(1, 24, 32, 1), layout="NHWC")
MASK = ModelInput(name="mask:0", dtype="float32", shape=(1, 8))
DONE = PictureFlags(mean="1,2,3", std="4", resize="40x30")


@pytest.fixture(scope="module")
def host():
    return discover()


@pytest.fixture
def folder(tmp_path):
    """Makes a folder with empty files of these names."""

    def make(*names: str, name: str = "data"):
        made = tmp_path / name
        made.mkdir()
        for one in names:
            (made / one).write_bytes(b"")
        return made

    return make


def refused(flags, inputs, host) -> InputError:
    with pytest.raises(InputError) as caught:
        data_values(flags, inputs, host)
    return caught.value


@pytest.mark.parametrize(
    ("names", "reader", "count"),
    [
        (["a.bin", "b.BIN"], "BIN", 2),
        (["a.npy", "b.npz", "c.npy"], "NPY", 3),
        (["a.npy", "labels.csv", ".hidden.bin"], "NPY", 1),  # what is no sample does not count
    ],
)
def test_reader_is_chosen_by_the_files(folder, host, names, reader, count):
    data = folder(*names)
    values = data_values(DataFlags(data=(str(data),)), [IMAGE], host)
    assert values == {
        "calibrate_path": {"image": str(data)},
        "calibrate_size": count,
        "input_type": reader,
    }


def test_pictures(folder, host):
    data = folder(*(f"{index}.jpg" for index in range(101)), "last.PNG")
    values = data_values(DataFlags(data=(str(data),), pictures=DONE), [IMAGE], host)
    assert values == {
        "calibrate_path": {"image": str(data)},
        "calibrate_size": 100,
        "input_type": "IMAGE",
        "image_to_format": "RGB",
        "normalize_mean": [1, 2, 3],
        "normalize_std": [4, 4, 4],
        "resize_width": 40,
        "resize_height": 30,
        "resize_method": "LINEAR",
    }


def test_size_can_be_asked_for(folder, host):
    data = folder("a.bin", "b.bin")
    values = data_values(DataFlags(data=(str(data),), calibrate_size=1), [IMAGE], host)
    assert values["calibrate_size"] == 1


def test_mixed_files_are_to_be_sorted(folder, host):
    error = refused(DataFlags(data=(str(folder("a.png", "b.npy", "c.npy")),)), [IMAGE], host)
    assert "2 .npy, 1 .png" in str(error)
    assert "sort them" in str(error)


def test_flags_for_pictures_without_pictures(folder, host):
    flags = DataFlags(data=(str(folder("a.npy")),), pictures=PictureFlags(mean="1", resize="1x1"))
    assert "--mean, --resize: for pictures, and the samples are NPY" in str(
        refused(flags, [IMAGE], host)
    )


def test_missing_reader_of_pictures_is_named(folder):
    without = discover(autoload=False)
    error = refused(DataFlags(data=(str(folder("a.png")),)), [IMAGE], without)
    assert "no preprocessor named 'IMAGE'" in str(error)


def test_several_inputs(folder, host):
    images, masks = folder("a.npy", "b.npy", name="i"), folder("a.npy", name="m")
    flags = DataFlags(data=(f"mask:0:{masks}", f"image:{images}"))
    values = data_values(flags, [IMAGE, MASK], host)
    assert values["calibrate_path"] == {"mask:0": str(masks), "image": str(images)}
    assert values["calibrate_size"] == 1  # of the smaller folder


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (["x"], "'x' is for which input?"),
        (["imag:x"], "did you mean 'image'?"),
        (["image:x"], "no samples for input 'mask:0'"),
        (["image:x", "image:y"], "'image' is given twice"),
    ],
)
def test_inputs_that_do_not_fit(host, data, said):
    assert said in str(refused(DataFlags(data=tuple(data)), [IMAGE, MASK], host))


def test_folder_with_a_colon_in_its_name(folder, host):
    data = folder("a.npy", name="to:day")
    values = data_values(DataFlags(data=(str(data),)), [IMAGE], host)
    assert values["calibrate_path"] == {"image": str(data)}


# ---------------------------------------------------------------------------------- pictures


def test_all_that_is_missing_is_named_at_once():
    with pytest.raises(InputError) as caught:
        picture_values(PictureFlags(), IMAGE, ask=False)
    (problem,) = caught.value.problems
    assert problem.message.endswith("missing: --mean, --std, --resize (or --center-crop)")
    assert "--mean 127.5 --std 127.5 --resize 32x24" in problem.hint


def test_all_that_is_wrong_is_named_at_once():
    flags = PictureFlags(mean="1,2", std="x", center_crop="32", resize_method="CUBIC")
    with pytest.raises(InputError) as caught:
        picture_values(flags, IMAGE, ask=False)
    messages = [problem.message for problem in caught.value.problems]
    assert messages == [
        "--mean 1,2: expected one number, or 3, found 2",
        "--std x: expected numbers with commas between",
        "--resize-method has no effect without --resize",
        "--center-crop 32: expected WIDTHxHEIGHT, each from 1 to 65535",
    ]


def test_crop_alone_is_enough():
    values = picture_values(PictureFlags(mean="0", std="1", center_crop="32x24"), IMAGE, ask=False)
    assert values["center_crop_width"] == 32
    assert values["center_crop_height"] == 24
    assert "resize_width" not in values


def test_one_channel_means_gray():
    values = picture_values(PictureFlags(mean="1", std="2", resize="32x24"), GRAY, ask=False)
    assert values["image_to_format"] == "GRAY"
    assert values["normalize_mean"] == [1]


def test_colour_is_as_told():
    flags = PictureFlags(mean="1", std="2", resize="32x24", color="BGR", resize_method="NEAREST")
    values = picture_values(flags, IMAGE, ask=False)
    assert values["image_to_format"] == "BGR"
    assert values["resize_method"] == "NEAREST"


@pytest.mark.parametrize(("text", "size"), [("32x24", (32, 24)), (" 1X65535 ", (1, 65535))])
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "32", "0x1", "1x65536", "-1x2", "1x2x3", "axb"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_stacked_samples_in_one_file_are_not_counted(folder, host):
    file = folder("all.npy") / "all.npy"
    values = data_values(DataFlags(data=(str(file),)), [IMAGE], host)
    assert values["calibrate_size"] == 100
