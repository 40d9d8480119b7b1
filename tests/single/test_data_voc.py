"""Pascal VOC: what annotations say, which objects count, and batches that both loaders make alike."""

import contextlib
import io
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from resist_hvd.data import Shard
from resist_hvd.data.detection.batches import (
    NO_OBJECT,
    DetectionBatch,
    DetectionSettings,
    DetectionSource,
    Targets,
)
from resist_hvd.data.detection.voc import CLASSES, AnnotatedImages, parse_annotation, read_annotation, read_lists
from resist_hvd.data.side_stream import making_stream
from resist_hvd.errors import UserError

from .. import imagenet_sample

CPU = torch.device("cpu")
ALL = Shard(rank=0, size=1)


def annotation(width: int, height: int, *objects: str) -> str:
    return (
        "<annotation><folder>VOC</folder><source><annotation>PASCAL VOC2007</annotation></source>"
        f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size><segmented>0</segmented>"
        f"{''.join(objects)}</annotation>"
    )


def thing(name: str, *box: object, difficult: object = 0, inside: str = "") -> str:
    edges = "".join(f"<{edge}>{v}</{edge}>" for edge, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return (
        f"<object><name>{name}</name><pose>Left</pose><truncated>1</truncated><difficult>{difficult}</difficult>"
        f"<bndbox>{edges}</bndbox>{inside}</object>"
    )


class Devkit:
    """A folder VOCdevkit that is filled image by image."""

    def __init__(self, root: Path) -> None:
        self.root = root / "VOCdevkit"

    def add(self, year: str, which: str, identifier: str, image: bytes | tuple[int, int], *objects: str) -> None:
        folder = self.root / f"VOC{year}"
        for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        if isinstance(image, tuple):
            file = io.BytesIO()
            noise = np.random.default_rng(sum(os.fsencode(identifier))).integers(0, 256, (image[1], image[0], 3))
            Image.fromarray(noise.astype(np.uint8)).save(file, "JPEG")
            image = file.getvalue()
        self.image(year, identifier).write_bytes(image)
        self.annotation(year, identifier).write_text(annotation(*Image.open(io.BytesIO(image)).size, *objects))
        with self.list(year, which).open("a", errors="surrogateescape") as lines:
            lines.write(f"{identifier}\n")

    def image(self, year: str, identifier: str) -> Path:
        return self.root / f"VOC{year}/JPEGImages/{identifier}.jpg"

    def annotation(self, year: str, identifier: str) -> Path:
        return self.root / f"VOC{year}/Annotations/{identifier}.xml"

    def list(self, year: str, which: str) -> Path:
        return self.root / f"VOC{year}/ImageSets/Main/{which}.txt"


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


def settings(devkit: Devkit, **changes: Any) -> DetectionSettings:
    base: dict[str, Any] = {"classes": FOUR, "batch_size": 2, "test_batch_size": 2, "image_size": 32}
    return DetectionSettings(root=devkit.root, **{**base, "loader": "torchvision", **changes})


def load(devkit: Devkit, shard: Shard = ALL, seed: int = 3, **changes: Any) -> DetectionSource:
    return DetectionSource(settings(devkit, **changes), shard=shard, seed=seed, device=CPU)


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
    check_error(devkit, "EXIF", devkit.image("2007", "000004"), "ignore_exif=True")
    assert load(devkit, ignore_exif=True).spec.test_size == 4


def test_the_sides_in_an_annotation_tell_whether_it_is_of_a_turned_picture(devkit: Devkit) -> None:
    devkit.add("2007", "test", "000004", turned((40, 20), 6), thing("dog", 1, 1, 20, 20))
    assert load(devkit).spec.test_size == 4  # as it is stored
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
    check_error(
        devkit, seen, devkit.image("2012", "2008_000002"), "smaller", test=("2012-trainval",), train=("2012-trainval",)
    )


@pytest.mark.parametrize("ending", [".png", ".JPG", ".jpeg", ".bmp"])
def test_images_may_have_any_usual_ending(devkit: Devkit, ending: str) -> None:
    path = devkit.image("2007", "000003")
    with Image.open(path) as image:
        image.convert("RGB").save(path.with_suffix(ending))
    path.unlink()
    assert sum(len(batch.images) for batch in load(devkit).test()) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "latin-1"])
@pytest.mark.parametrize("line", ["mein Föto", "mein Föto  1", "mein Föto -1\r", "mein Föto.jpg"])
def test_lists_name_files_of_any_name(devkit: Devkit, encoding: str, line: str) -> None:
    name = os.fsdecode("mein Föto".encode("latin-1" if encoding == "latin-1" else "utf-8"))
    devkit.add("2028", "mine", name, (40, 40), thing("dog", 1, 1, 20, 20))
    devkit.list("2028", "mine").write_bytes(f"{line}\n".encode(encoding))
    source = load(devkit, train=("2028-mine",), test=("2028-mine",), classes=("dog",), batch_size=1)
    assert next(source.train()).images.shape == (1, 3, 32, 32)


def test_a_name_that_ends_like_a_column_is_a_name_where_there_is_such_a_file(devkit: Devkit) -> None:
    devkit.add("2028", "mine", "photo 1", (40, 40), thing("dog", 1, 1, 20, 20))
    assert load(devkit, train=("2028-mine",), test=("2028-mine",), classes=("dog",), batch_size=1).spec.train_size == 1


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
    images = read_lists(devkit.root, ("2007-trainval", "2012-trainval"), FOUR)
    names = [path.name for path in images.paths]
    assert names == [f"{n}.jpg" for n in ("000005", "000007", "000009", "2008_000002", "2008_000003", "2008_000007")]
    assert images.sizes.tolist() == [[40, 20], [20, 40], [30, 30], [50, 25], [60, 30], [32, 16]]
    assert images.ends.tolist() == [2, 3, 3, 4, 6, 7]
    assert images.labels.tolist() == [1, 0, 2, 1, 0, 1, 3]
    assert images.difficult.tolist() == [False] * 3 + [True] + [False] * 3
    assert images.boxes[3].tolist() == [0.5, 1.25, 10.5, 20]
    assert images.most_objects == 2
    assert read_lists(devkit.root.parent, ("2007-trainval",), ("dog",)).paths == images.paths[:3]


def test_any_classes_in_any_order(devkit: Devkit) -> None:
    images = read_lists(devkit.root, ("2007-trainval", "2012-trainval"), ("person", "cat"))
    assert images.labels.tolist() == [1, 0, 1]
    assert [images.objects_of(number) for number in range(6)] == [
        slice(0, 1), slice(1, 2), slice(2, 2), slice(2, 2), slice(2, 3), slice(3, 3),
    ]  # fmt: skip


def test_the_twenty_classes_are_vocs() -> None:
    assert len(CLASSES) == 20
    assert list(CLASSES) == sorted(CLASSES)
    assert {"aeroplane", "diningtable", "pottedplant", "tvmonitor"} < set(CLASSES)


def test_difficult_objects_are_left_out_and_their_images_stay(devkit: Devkit) -> None:
    images = read_lists(devkit.root, ("2012-trainval",), FOUR)
    without = images.without_difficult()
    assert len(without) == len(images) == 3
    assert without.labels.tolist() == [0, 1, 3]
    assert without.ends.tolist() == [0, 2, 3]
    assert not without.difficult.any()


def check_error(devkit: Devkit, seen: str, where: Path, mend: str, **changes: Any) -> None:
    with pytest.raises(UserError) as info:
        load(devkit, **changes)
    assert seen in info.value.seen
    assert info.value.where == str(where)
    assert mend in info.value.mend


def test_what_is_missing_is_named(devkit: Devkit, tmp_path: Path) -> None:
    check_error(
        devkit,
        "No object is of the class 'cta' in 2007-trainval, 2012-trainval",
        devkit.root,
        "spell",
        classes=("cta",),
    )
    path = devkit.image("2007", "000007")
    image = path.read_bytes()
    path.unlink()
    check_error(devkit, "The image cannot be read (No such file or directory)", path, "Unpack its archive")
    path.write_bytes(b"no image")
    check_error(devkit, "The image cannot be read (it is no image)", path, "Unpack its archive")
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


def test_fewer_images_than_a_batch_of_all_workers(devkit: Devkit) -> None:
    check_error(devkit, "voc has 6 training images, fewer than the 8", devkit.root, "batch_size", batch_size=8)
    assert load(devkit, Shard(rank=1, size=3)).spec.train_size == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0; give a number of at least 1"),
        ({"image_size": -1}, "image_size is -1; give"),
        ({"classes": ()}, r"classes is \(\); give at least one"),
        ({"classes": ("dog", "dog")}, "none twice"),
        ({"test": ("2007-test", "2007-test")}, "none twice"),
        ({"train": ("train",)}, "a list is 'train'; give a year and the list's name, as '2007-train'"),
        ({"test": "2007-test"}, r"test is the text '2007-test'; give a tuple, as \('2007-test',\)"),
        ({"classes": "cellbody"}, r"classes is the text 'cellbody'; give a tuple, as \('cellbody',\)"),
    ],
)
def test_settings_that_are_wrong_by_themselves(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectionSettings(root=Path("voc"), **changes)


def test_dali_that_is_not_installed_is_told(devkit: Devkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resist_hvd.data.detection.batches.dali_is_installed", lambda: False)
    with pytest.raises(UserError, match=r"NVIDIA DALI is not installed.*launch/setup --dali"):
        load(devkit, loader="dali")
    assert next(load(devkit, loader="auto").train()).images.shape == (2, 3, 32, 32)


# Batches


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 64), st.integers(0, 3), st.integers(0, 2**31)
)
def test_targets_are_the_objects_and_padding(counts: list[int], size: int, spare: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    objects = sum(counts)
    sizes = random.integers(1, 500, (len(counts), 2))
    images = AnnotatedImages(
        paths=tuple(Path(str(number)) for number in range(len(counts))),
        sizes=sizes,
        boxes=random.uniform(0, 500, (objects, 4)).astype(np.float32),
        labels=random.integers(0, 20, objects),
        difficult=random.integers(0, 2, objects).astype(np.bool_),
        ends=np.cumsum(counts),
    )
    places = images.most_objects + spare
    targets = Targets.of(images, size=size, places=places)
    assert targets.boxes.shape == (len(counts), places, 4)
    for number, count in enumerate(counts):
        own = images.objects_of(number)
        scale = size / np.tile(sizes[number], 2)
        np.testing.assert_allclose(targets.boxes[number, :count], images.boxes[own] * scale, rtol=1e-5)
        assert targets.labels[number].tolist() == images.labels[own].tolist() + [NO_OBJECT] * (places - count)
        assert targets.difficult[number].tolist() == images.difficult[own].tolist() + [False] * (places - count)
        assert not targets.boxes[number, count:].any()


def epoch(sources: list[DetectionSource], batches: int) -> list[list[DetectionBatch]]:
    return [[next(source.train()) for _ in range(batches)] for source in sources]


def objects_in(batches: list[DetectionBatch]) -> list[list[int]]:
    return sorted(sorted(row[row != NO_OBJECT].tolist()) for batch in batches for row in batch.targets.labels)


@pytest.fixture(params=["torchvision", "dali"])
def loader(request: pytest.FixtureRequest) -> str:
    if request.param == "dali":
        pytest.importorskip("nvidia.dali")
    return str(request.param)


def test_workers_share_out_an_epoch(devkit: Devkit, loader: str) -> None:
    shares = epoch([load(devkit, Shard(rank=rank, size=3), loader=loader) for rank in range(3)], 1)
    whole = epoch([load(devkit, loader=loader)], 3)[0]
    expected = sorted([[0, 1], [2], [], [], [0, 1], [3]])  # without the difficult dog
    assert objects_in([batch for share in shares for batch in share]) == objects_in(whole) == expected
    batch = whole[0]
    assert batch.images.shape == (2, 3, 32, 32)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.targets.boxes.shape == (2, 2, 4)


def test_difficult_objects_are_targets_where_that_is_asked_for(devkit: Devkit) -> None:
    batches = epoch([load(devkit, train_on_difficult=True)], 3)[0]
    assert objects_in(batches) == sorted([[0, 1], [2], [], [1], [0, 1], [3]])
    assert sum(int(batch.targets.difficult.sum()) for batch in batches) == 1


def test_the_test_set_comes_once_with_difficult_objects_marked(devkit: Devkit, loader: str) -> None:
    source = load(devkit, loader=loader)
    assert (source.spec.test_size, source.places) == (3, 2)
    first, second = source.test()
    assert (len(first.images), len(second.images)) == (2, 1)
    assert first.targets.labels.tolist() == [[1, 1], [0, NO_OBJECT]]
    assert first.targets.difficult.tolist() == [[False, True], [False, False]]
    assert first.targets.boxes[0].tolist() == pytest.approx(np.array([[0, 0, 16, 16], [1.6, 1.6, 7.2, 7.2]]))
    assert first.targets.boxes[1, 0].tolist() == [0, 0, 16, 32]
    shares = [list(source.test(Shard(rank=rank, size=2))) for rank in range(2)]
    assert [len(batch.images) for share in shares for batch in share] == [2, 1]
    assert torch.equal(shares[1][0].images[0], first.images[1])
    assert list(source.test(Shard(rank=3, size=4))) == []


def test_a_position_comes_back_exactly(devkit: Devkit, loader: str) -> None:
    shard = Shard(rank=1, size=2)
    stream = load(devkit, shard, loader=loader).train()
    for _ in range(2):
        next(stream)
    state = json.loads(json.dumps(stream.state()))
    following = [next(stream) for _ in range(4)]
    resumed = load(devkit, shard, loader=loader).train()
    next(resumed)
    assert resumed.load_state(state) is None
    assert resumed.samples_drawn == 8
    for expected in following:
        batch = next(resumed)
        assert torch.equal(batch.images, expected.images)
        assert torch.equal(batch.targets.boxes, expected.targets.boxes)


def test_another_number_of_workers_goes_on_with_the_same_order_and_says_so(devkit: Devkit) -> None:
    streams = [load(devkit, Shard(rank=rank, size=2), batch_size=1).train() for rank in range(2)]
    begun = [next(stream) for stream in streams]
    state = streams[0].state()
    alone = load(devkit, batch_size=1).train()
    said = alone.load_state(state)
    assert said is not None
    assert "workers 2 is now 1" in said
    rest = [next(alone) for _ in range(4)]
    assert objects_in([*begun, *rest]) == sorted([[0, 1], [2], [], [], [0, 1], [3]])


@pytest.mark.parametrize("change", [{"samples_drawn": -1}, {"samples_drawn": "3"}, {"more": 2}])
def test_a_damaged_position_is_refused(devkit: Devkit, change: dict[str, Any]) -> None:
    stream = load(devkit).train()
    with pytest.raises(UserError, match="The data position in the checkpoint cannot be read"):
        stream.load_state(stream.state() | change)


def test_a_damaged_image_is_named(devkit: Devkit, loader: str) -> None:
    path = devkit.image("2007", "000002")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(UserError) as info:
        list(load(devkit, loader=loader).test())
    assert "The image file is a damaged image" in info.value.seen
    assert info.value.where == str(path)


def test_closing_ends_what_decodes_ahead(devkit: Devkit, loader: str) -> None:
    with load(devkit, loader=loader) as source:
        next(source.train())
    assert source.train()._batches is None


@pytest.fixture
def real(tmp_path: Path) -> Devkit:
    """Photographs of all shapes, some of them grey, with boxes at their edges."""
    made = Devkit(tmp_path)
    for number, image in enumerate(imagenet_sample.read(24).values()):
        width, height = Image.open(io.BytesIO(image)).size
        which = "trainval" if number % 3 else "test"
        box = thing("dog", 1, 1, width, height), thing("cat", width // 2, height // 3, width - 1, height)
        made.add("2007", which, f"{number:06d}", image, *box)
    return made


def test_both_loaders_make_the_same_batches_of_photographs(real: Devkit) -> None:
    pytest.importorskip("nvidia.dali")
    common: dict[str, Any] = {
        "classes": ("dog", "cat"), "train": ("2007-trainval",), "image_size": 448, "batch_size": 4, "decode_threads": 2,
    }  # fmt: skip
    one, other = (load(real, loader=loader, **common) for loader in ("torchvision", "dali"))
    pairs = [*zip(one.test(), other.test(), strict=True), *((next(one.train()), next(other.train())) for _ in range(4))]
    assert len(pairs) == 8
    for ours, theirs in pairs:
        assert torch.equal(ours.targets.boxes, theirs.targets.boxes)
        assert torch.equal(ours.targets.labels, theirs.targets.labels)
        assert ours.images.shape == theirs.images.shape
        # A pixel value is a step of about 0.017; decoders round differently, and so do filters.
        difference = (ours.images - theirs.images).abs()
        assert difference.mean() < 0.005
        assert (difference > 0.05).float().mean() < 1e-3
        assert difference.max() < 0.25
        assert difference.quantile(0.999) < 0.08 if difference.numel() < 2**24 else True
        assert ours.targets.boxes[:, 0].tolist() == [[0, 0, 448, 448]] * len(ours.images)


def test_all_evaluations_are_made_in_one_stream(devkit: Devkit, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU memory belongs to the stream that it was used in: each evaluation's own would be lost to the next."""
    made = mock.Mock(side_effect=making_stream)
    monkeypatch.setattr("resist_hvd.data.detection.batches.making_stream", made)
    with load(devkit) as source:
        next(source.train())
        assert len(list(source.test())) == len(list(source.test())) > 0
    assert made.mock_calls == [mock.call(CPU)] * 2, "one for training, and one for testing"
