"""Pascal VOC: annotations, the objects that count, and images with them."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile
from torchvision.transforms import v2

from resist_hvd.data.detection.annotated import AnnotatedImages
from resist_hvd.data.detection.annotations import parse_annotation, read_annotation
from resist_hvd.data.detection.voc import read_lists
from resist_hvd.errors import UserError

from ..voc_images import Devkit, annotation, thing


@pytest.fixture
def devkit(tmp_path: Path) -> Devkit:
    """Six training images, one of them without an object, and three test images; some objects are difficult."""
    made = Devkit(tmp_path)
    parts = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    made.add("2007", "trainval", "000005", (40, 20), thing("dog", 1, 1, 40, 20), thing("cat", 11, 6, 20, 10))
    made.add("2007", "trainval", "000007", (20, 40), thing("person", 5, 5, 6, 6, inside=parts))
    made.add("2007", "trainval", "000009", (30, 30))
    made.add("2012", "trainval", "2008_000002", (50, 25), thing("dog", 1.5, 2.25, 10.5, 20, difficult=1))
    made.add("2012", "trainval", "2008_000003", (60, 30), thing("cat", 1, 1, 61, 30), thing("dog", 2, 2, 3, 3))
    made.add("2012", "trainval", "2008_000007", (32, 16), thing("sheep", 3, 3, 30, 14))
    made.add("2007", "test", "000001", (40, 40), thing("dog", 1, 1, 20, 20), thing("dog", 3, 3, 9, 9, difficult=1))
    made.add("2007", "test", "000002", (40, 20), thing("cat", 1, 1, 20, 20))
    made.add("2007", "test", "000003", (20, 20), thing("person", 1, 1, 20, 20), thing("sheep", 2, 2, 20, 20))
    return made


FOUR = ("cat", "dog", "person", "sheep")


BOTH = ("2007-trainval", "2012-trainval")
TEST = ("2007-test",)


def read(
    devkit: Devkit, lists: tuple[str, ...] = TEST, classes: tuple[str, ...] = FOUR, **flags: Any
) -> AnnotatedImages:
    return read_lists(devkit.root, lists, classes, **flags)


# Annotations


def test_boxes_count_from_the_images_edge_and_include_their_last_pixel() -> None:
    found = parse_annotation(annotation(40, 20, thing("dog", 1, 1, 40, 20), thing("cat", 11, 6, 20, 10)).encode())
    assert (found.width, found.height, found.names) == (40, 20, ("dog", "cat"))
    assert found.boxes.tolist() == [[0, 0, 40, 20], [10, 5, 20, 10]]
    assert found.boxes.dtype == np.float32


def test_a_pixel_beyond_the_edge_is_cut_off() -> None:
    found = parse_annotation(annotation(40, 20, thing("dog", 0, -1, 41, 21.5)).encode())
    assert found.boxes.tolist() == [[0, 0, 40, 20]]


def test_the_least_box_is_one_pixel() -> None:
    assert parse_annotation(annotation(40, 20, thing("dog", 7, 7, 7, 7)).encode()).boxes.tolist() == [[6, 6, 7, 7]]


def test_parts_are_no_objects_and_difficult_may_be_missing() -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    text = annotation(40, 20, thing("person", 1, 1, 9, 9, inside=part), thing("dog", 1, 1, 9, 9, difficult=1))
    found = parse_annotation(text.encode())
    assert found.names == ("person", "dog")
    assert found.difficult.tolist() == [False, True]
    assert not parse_annotation(text.replace("<difficult>1</difficult>", "").encode()).difficult.any()


def test_a_name_is_one_line() -> None:
    assert parse_annotation(annotation(40, 20, thing(" big\n\tdog ", 1, 1, 9, 9)).encode()).names == ("big dog",)


def test_an_image_may_have_no_object() -> None:
    found = parse_annotation(annotation(40, 20).encode())
    assert (found.names, found.boxes.shape, found.difficult.shape) == ((), (0, 4), (0,))


ENTITIES = '<!DOCTYPE lol [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;">]><annotation>&b;</annotation>'
DAMAGED = {
    "": "it is no XML",
    "<annotation>": "it is no XML",
    "<annotation></annotation>": "size/width is None, which is no number",
    annotation(40, 0): "its image has 40 x 0 pixels",
    annotation(40, 20, thing("dog", 1, 1, "wide", 20)): "of object 1, bndbox/xmax is 'wide', which is no number",
    annotation(40, 20, thing("dog", 1, 1, "nan", 20)): "of object 1, bndbox/xmax is 'nan', which is no number",
    annotation(40, 20, thing("dog", 1, 1, 9, 9), thing("", 1, 1, 9, 9)): "of object 2, it has no name",
    annotation(40, 20, "<object><name>dog</name></object>"): "of object 1, bndbox/xmin is None",
    annotation(40, 20, thing("dog", 20, 1, 10, 9)): "of object 1, the box 20, 1, 10, 9 has no pixel of 40 x 20",
    annotation(40, 20, thing("dog", 50, 1, 60, 9)): "of object 1, the box 50, 1, 60, 9 has no pixel of 40 x 20",
    annotation(40, 20, thing("dog", 10.5, 1, 9.50000001, 9)): "of object 1, the box 10.5, 1, 9.5, 9 has no pixel",
    annotation(40, 20, thing("dog", 0.1, 0.2, 0.5, 1)): "of object 1, the box 0.1, 0.2, 0.5, 1 is in shares",
    annotation(40, 20, thing("dog", 1, 1, 9, 9, difficult="x")): "of object 1, difficult is 'x', which is no number",
    ENTITIES: "it declares a document type, lol",
    '<!DOCTYPE a SYSTEM "file:///etc/hostname"><annotation/>': "it declares a document type, a",
}


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_damaged_is_told_with_its_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "000001.xml").write_text(text)
    with pytest.raises(UserError) as info:
        read_annotation(tmp_path / "000001.xml")
    assert info.value.seen.startswith(f"The annotation is damaged: {DAMAGED[text]}")
    assert info.value.where == str(tmp_path / "000001.xml")
    assert "\n" not in str(info.value)


ENCODINGS = ["UTF-8", "utf8", "utf-8-sig", "ANSI", "unicode", "GB2312", "GBK", "ISO-8859-1", "UTF-16", "Big5", None]


@pytest.mark.parametrize("declared", ENCODINGS)
@pytest.mark.parametrize("written", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_annotations_are_read_in_whatever_encoding_tools_write(declared: str | None, written: str) -> None:
    opening = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    path = "<annotation><path>C:\\Jürgen\\a.jpg</path>"
    text = opening + annotation(40, 20, thing("dog", 1, 1, 9, 9)).replace("<annotation>", path, 1)
    assert parse_annotation(text.encode(written)).names == ("dog",)


def test_a_name_is_read_in_its_encoding_or_refused() -> None:
    def names(name: str, declared: str, written: str) -> tuple[str, ...]:
        text = f"<?xml version='1.0' encoding='{declared}'?>{annotation(40, 20, thing(name, 1, 1, 9, 9))}"
        return parse_annotation(text.encode(written)).names

    assert names("狗", "GB2312", "gbk") == names("狗", "GBK", "utf-8") == names("狗", "unicode", "utf-16") == ("狗",)
    assert names("Kröte", "ISO-8859-1", "latin-1") == ("Kröte",)
    with pytest.raises(
        ValueError, match=r"of object 1, its name .* is not in the file's encoding: save the file as UTF-8"
    ):
        names("Kröte", "UTF-8", "latin-1")
    with pytest.raises(ValueError, match="encoding that is not known, 'klingon': save it as UTF-8"):
        names("Kröte", "Klingon", "latin-1")


@pytest.mark.parametrize(
    ("word", "difficult"),
    [("0", False), ("1", True), ("", False), ("Unspecified", False), ("False", False), ("TRUE", True)],
)
def test_difficult_may_be_a_word(word: str, difficult: bool) -> None:
    found = parse_annotation(annotation(40, 20, thing("dog", 1, 1, 9, 9, difficult=word)).encode())
    assert found.difficult.tolist() == [difficult]


def turned(size: tuple[int, int], orientation: int) -> bytes:
    """A JPEG of stored `size` that EXIF says is to be turned when shown."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.new("RGB", size).save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.mark.parametrize(("size", "orientation"), [((40, 40), 6), ((40, 40), 3), ((40, 20), 3), ((40, 20), 2)])
def test_boxes_that_may_be_for_a_turned_picture_are_refused_unless_that_is_decided(
    devkit: Devkit, size: tuple[int, int], orientation: int
) -> None:
    devkit.add("2007", "test", "000004", turned(size, orientation), thing("dog", 1, 1, 20, 20))
    seen = f"orientation {orientation}), and its boxes may be for it as it is stored or as it is shown"
    check_error(devkit, seen, devkit.image("2007", "000004"), "exiftran -ai")
    check_error(devkit, "EXIF", devkit.image("2007", "000004"), "--data.ignore_exif")
    assert len(read(devkit, ignore_exif=True)) == 4


def test_the_sides_in_an_annotation_tell_whether_it_is_of_a_turned_picture(devkit: Devkit) -> None:
    devkit.add("2007", "test", "000004", turned((40, 20), 6), thing("dog", 1, 1, 20, 20))
    assert len(read(devkit)) == 4  # as it is stored
    text = devkit.annotation("2007", "000004").read_text()
    devkit.annotation("2007", "000004").write_text(
        text.replace("<width>40</width><height>20</height>", "<width>20</width><height>40</height>")
    )
    for ignored in (False, True):
        seen = "EXIF says that the image is to be turned when it is shown (orientation 6), and its boxes are for it as"
        check_error(devkit, seen, devkit.image("2007", "000004"), "exiftran -ai", ignore_exif=ignored)


def test_images_that_are_too_large_are_named(devkit: Devkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resist_hvd.data.decoding.LARGEST_IMAGE", 1_249)
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 7)
    seen = "The image has 50 x 25 pixels, more than the 1,249 that are read"
    check_error(devkit, seen, devkit.image("2012", "2008_000002"), "smaller", lists=("2012-trainval",))


def test_no_pixel_is_decoded_before_it_is_needed(devkit: Devkit, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = devkit.image("2007", "000001")
    with Image.open(plain) as image:
        image.save(plain.with_suffix(".png"))
    plain.unlink()
    decoded: list[PngImageFile] = []

    def note(image: PngImageFile) -> None:
        decoded.append(image)

    monkeypatch.setattr(PngImageFile, "load_prepare", note)
    assert read(devkit).paths[0].suffix == ".png"
    assert not decoded


def test_an_image_of_a_format_that_training_does_not_read_is_named_at_once(devkit: Devkit) -> None:
    path = devkit.image("2007", "000002")
    with Image.open(path) as image:
        image.save(path, "TGA")
    check_error(devkit, "The image cannot be read (it is no image, or one of an unknown format)", path, "Unpack")


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jpeg", ".bmp"])
def test_images_may_have_any_usual_ending(devkit: Devkit, ending: str) -> None:
    path = devkit.image("2007", "000003")
    with Image.open(path) as image:
        image.convert("RGB").save(path.with_suffix(ending))
    path.unlink()
    images = read(devkit)
    assert [images.example(number)[0].shape[0] for number in range(len(images))] == [3, 3, 3]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("line", ["mein Föto", "mein Föto  1", "mein Föto -1\r", "mein Föto.jpg"])
def test_lists_name_files_of_any_name(devkit: Devkit, encoding: str, line: str) -> None:
    name = os.fsdecode("mein Föto".encode("latin-1" if encoding == "latin-1" else "utf-8"))
    devkit.add("2028", "mine", name, (40, 40), thing("dog", 1, 1, 20, 20))
    devkit.list("2028", "mine").write_bytes(f"{line}\n".encode(encoding))
    image, _ = read(devkit, ("2028-mine",), ("dog",)).example(0)
    assert image.shape == (3, 40, 40)


def test_a_name_that_ends_like_a_column_is_a_name_where_there_is_such_a_file(devkit: Devkit) -> None:
    devkit.add("2028", "mine", "photo 1", (40, 40), thing("dog", 1, 1, 20, 20))
    assert len(read(devkit, ("2028-mine",), ("dog",))) == 1


def test_entities_are_not_hidden_by_an_encoding() -> None:
    with pytest.raises(ValueError, match="document type"):
        parse_annotation(f'<?xml version="1.0" encoding="utf-16"?>{ENTITIES}'.encode("utf-16"))


def test_an_endless_annotation_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "1.xml").write_text(annotation(40, 20) + " " * 2**20)
    with pytest.raises(UserError, match="it has more than 1048576 bytes"):
        read_annotation(tmp_path / "1.xml")


@given(st.binary(max_size=300))
def test_any_bytes_are_an_annotation_or_refused_in_words(content: bytes) -> None:
    whole = annotation(40, 20, thing("dog", 1, 1, 9, 9)).encode()
    for damaged in (content, whole[: len(content)] + content + whole[len(content) :]):
        with contextlib.suppress(ValueError):
            assert parse_annotation(damaged).boxes.shape[1] == 4


# Lists


def test_lists_are_read_in_order_with_both_years(devkit: Devkit) -> None:
    images = read(devkit, BOTH)
    names = [path.name for path in images.paths]
    assert names == [f"{n}.jpg" for n in ("000005", "000007", "000009", "2008_000002", "2008_000003", "2008_000007")]
    assert images.sizes.tolist() == [[40, 20], [20, 40], [30, 30], [50, 25], [60, 30], [32, 16]]
    assert images.ends.tolist() == [2, 3, 3, 4, 6, 7]
    assert images.labels.tolist() == [1, 0, 2, 1, 0, 1, 3]
    assert images.difficult.tolist() == [False] * 3 + [True] + [False] * 3
    assert images.boxes[3].tolist() == [0.5, 1.25, 10.5, 20]
    assert read_lists(devkit.root.parent, ("2007-trainval",), ("dog",)).paths == images.paths[:3]


def test_any_classes_in_any_order(devkit: Devkit) -> None:
    images = read(devkit, BOTH, ("person", "cat"))
    assert images.labels.tolist() == [1, 0, 1]
    assert [images.objects_of(number) for number in range(6)] == [
        slice(0, 1), slice(1, 2), slice(2, 2), slice(2, 2), slice(2, 3), slice(3, 3),
    ]  # fmt: skip


def test_difficult_objects_are_left_out_and_their_images_stay(devkit: Devkit) -> None:
    images = read(devkit, ("2012-trainval",), ("cat", "dog", "sheep"))
    without = images.without_difficult()
    assert len(without) == len(images) == 3
    assert without.labels.tolist() == [0, 1, 2]
    assert without.ends.tolist() == [0, 2, 3]
    assert not without.difficult.any()


def check_error(devkit: Devkit, seen: str, where: Path, mend: str, **changes: Any) -> None:
    with pytest.raises(UserError) as info:
        read(devkit, **{"lists": (*BOTH, *TEST), **changes})
    assert seen in info.value.seen
    assert info.value.where == str(where)
    assert mend in info.value.mend


def test_what_is_missing_is_named(devkit: Devkit, tmp_path: Path) -> None:
    seen = "No object is of the class 'cta' in 2007-trainval, 2012-trainval"
    check_error(devkit, seen, devkit.root, "spell", lists=BOTH, classes=("dog", "cta"))
    assert len(read(devkit, BOTH, ("dog", "cta"), may_lack_classes=True)) == 6
    path = devkit.image("2007", "000007")
    image = path.read_bytes()
    path.unlink()
    check_error(devkit, "The image cannot be read (No such file or directory)", path, "Unpack its archive")
    path.write_bytes(b"no image")
    check_error(devkit, "The image cannot be read (it is no image, or one of", path, "Unpack its archive")
    file = io.BytesIO()
    Image.new("RGB", (21, 40)).save(file, "JPEG")
    path.write_bytes(file.getvalue())
    check_error(devkit, "The image has 21 x 40 pixels, and its annotation says 20 x 40", path, "put the file right")
    path.write_bytes(image)
    devkit.annotation("2012", "2008_000003").unlink()
    where = devkit.annotation("2012", "2008_000003")
    check_error(devkit, "The annotation cannot be read (No such file", where, "Unpack its archive")


def test_lists_that_are_wrong_are_named(devkit: Devkit, tmp_path: Path) -> None:
    path = devkit.list("2007", "test")
    for text, seen in (("", "The list is empty"), ("../../x\n", "The list names '../../x', which is no image")):
        path.write_text(text)
        check_error(devkit, seen, path, "Unpack its archive")
    path.write_bytes(b"\xff\xfe")
    check_error(devkit, "The list is empty", path, "Unpack its archive")
    path.unlink()
    check_error(devkit, "The list cannot be read (No such file", path, "the archive of VOC2007 that has test")
    empty = Devkit(tmp_path / "elsewhere")
    check_error(empty, "There is no such folder", empty.root, "VOCdevkit")
    empty.root.mkdir(parents=True)
    check_error(empty, "There is no folder VOC2007 or VOC2012", empty.root, "VOCdevkit")
    with pytest.raises(UserError, match="The list 'trainval' has no year"):
        read(empty, ("trainval",))


# Images with their objects


def test_an_image_comes_with_its_objects(devkit: Devkit) -> None:
    image, objects = read(devkit, BOTH).example(0)
    assert image.shape == (3, 20, 40)
    assert objects["boxes"].tolist() == [[0, 0, 40, 20], [10, 5, 20, 10]]
    assert objects["labels"].tolist() == [1, 0]
    assert objects["difficult"].tolist() == [False, False]
    _, none = read(devkit, BOTH).example(2)
    assert none["boxes"].shape == (0, 4)


def test_torchvision_scales_images_and_boxes(devkit: Devkit) -> None:
    images = read(devkit)
    scaled = [v2.Resize((32, 32))(*images.example(number)) for number in range(3)]
    assert [tuple(image.shape) for image, _ in scaled] == [(3, 32, 32)] * 3
    assert np.allclose(scaled[0][1]["boxes"], [[0, 0, 16, 16], [1.6, 1.6, 7.2, 7.2]])
    assert scaled[0][1]["difficult"].tolist() == [False, True]
    assert scaled[1][1]["boxes"].tolist() == [[0, 0, 16, 32]]


def test_a_damaged_image_is_named(devkit: Devkit) -> None:
    path = devkit.image("2007", "000002")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match="damaged image"):
        read(devkit).example(1)
