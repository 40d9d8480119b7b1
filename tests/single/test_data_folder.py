"""Folders of images: what is read, in which order, and what is said of a folder that is wrong."""

import io
import runpy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from resist_hvd.data import DataSource, Shard, decoding, load
from resist_hvd.data.memory.folder import read
from resist_hvd.errors import UserError
from resist_hvd.settings.data import DataSettings


def noise(seed: int, *, size: tuple[int, int] = (8, 8)) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def encode(pixels: NDArray[np.uint8], image_format: str, mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, image_format)
    return file.getvalue()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes with three training images and one test image each: noise, as PNG, so that nothing is lost."""
    root = tmp_path / "pets"
    seed = 0
    for half, count in (("train", 3), ("test", 1)):
        for name in ("dog", "cat"):
            folder = root / half / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{number}.png").write_bytes(encode(noise(seed), "PNG"))
                seed += 1
    return root


def settings(root: Path, **changes: Any) -> DataSettings:
    return DataSettings(name="folder", root=root, **{"batch_size": 2, "crop_padding": 1, **changes})


def load_folder(root: Path, *, workers: int = 1, **changes: Any) -> DataSource:
    shard = Shard(rank=0, size=workers)
    return load(settings(root, **changes), shard=shard, seed=0, device=torch.device("cpu"))


def test_images_are_read_in_sorted_order_with_sorted_classes(root: Path) -> None:
    images = read(settings(root))
    assert images.name == "pets"
    assert images.classes == ("cat", "dog")
    assert images.train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert images.test.labels.tolist() == [0, 1]
    for number, seed in enumerate([3, 4, 5, 0, 1, 2]):
        assert np.array_equal(images.train.images[number], noise(seed))
    for number, seed in enumerate([7, 6]):
        assert np.array_equal(images.test.images[number], noise(seed))


def test_a_folder_becomes_a_source(root: Path) -> None:
    source = load_folder(root)
    assert (source.spec.channels, source.spec.image_size) == (3, 8)
    assert (source.spec.train_size, source.spec.test_size) == (6, 2)
    pixels, labels = next(source.train())
    assert pixels.shape == (2, 3, 8, 8)
    assert labels.shape == (2,)


def test_a_folder_may_be_a_link_of_links(root: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    (linked / "train" / "cat").mkdir(parents=True)
    for file in (root / "train" / "cat").iterdir():
        (linked / "train" / "cat" / file.name).symlink_to(file)
    (linked / "train" / "dog").symlink_to(root / "train" / "dog")
    (linked / "test").symlink_to(root / "test")
    (tmp_path / "link").symlink_to(linked)
    assert torch.equal(read(settings(tmp_path / "link")).train.padded, read(settings(root)).train.padded)


def test_the_home_folder_may_be_written_as_a_tilde(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(root.parent))
    assert read(settings(Path("~/pets"))).name == "pets"


def test_val_is_the_test_folder_where_there_is_no_test(root: Path) -> None:
    expected = read(settings(root)).test
    (root / "test").rename(root / "val")
    assert torch.equal(read(settings(root)).test.padded, expected.padded)


def test_test_goes_before_val(root: Path) -> None:
    shutil.copytree(root / "train", root / "val")
    assert len(read(settings(root)).test) == 2


def test_hidden_entries_and_litter_are_left_out(root: Path) -> None:
    expected = read(settings(root)).train.padded
    (root / "train" / ".cache").mkdir()
    (root / "train" / "cat" / ".DS_Store").write_bytes(b"no image")
    (root / "train" / "README").write_text("not a class, since it is not a folder")
    for litter in ("Thumbs.db", "desktop.ini", "notes.txt"):
        (root / "train" / "cat" / litter).write_bytes(b"no image")
    for folder in ("train/cat/album.jpg", "train/cat/@eaDir", "train/@eaDir", "test/__MACOSX"):
        (root / folder).mkdir()
    assert torch.equal(read(settings(root)).train.padded, expected)


def test_the_test_folder_may_lack_a_class(root: Path) -> None:
    shutil.rmtree(root / "test" / "cat")
    assert read(settings(root)).test.labels.tolist() == [1]


def test_any_number_of_decoding_threads_reads_the_same(root: Path) -> None:
    for number in range(200):
        (root / "train" / "cat" / f"more{number:03d}.jpg").write_bytes(encode(noise(100 + number), "JPEG"))
    alone = read(settings(root, decode_threads=1))
    several = read(settings(root, decode_threads=5))
    assert torch.equal(alone.train.padded, several.train.padded)
    assert torch.equal(alone.train.labels, several.train.labels)


def test_images_of_all_sizes_are_scaled_where_a_size_is_given(root: Path) -> None:
    white = np.full((20, 40, 3), 255, dtype=np.uint8)
    white[:, :6] = white[:, -6:] = 0  # outside the middle square and the reach of the filter
    (root / "train" / "cat" / "wide.png").write_bytes(encode(white, "PNG"))
    images = read(settings(root, image_size=6)).train
    assert images.image_size == 6
    assert torch.equal(images.images[3], torch.full((6, 6, 3), 255, dtype=torch.uint8))


def test_the_crop_defaults_to_an_eighth_of_the_image(root: Path) -> None:
    assert read(settings(root, crop_padding=None)).train.padding == 1
    assert read(settings(root, crop_padding=None, image_size=32)).train.padding == 4


# Decoding


@pytest.fixture(params=["simplejpeg", "pillow"])
def decode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], NDArray[np.uint8]]:
    """The decoder with and without the faster library."""
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "_simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return decoding.decode_rgb


def test_jpegs_decode_to_the_same_pixels_by_either_library(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    smooth = np.linspace(0, 255, 48 * 36 * 3).reshape(48, 36, 3).astype(np.uint8)
    encoded = []
    for pixels in (noise(1, size=(33, 47)), smooth):
        for quality in (30, 75, 95):
            for subsampling in (0, 1, 2):
                file = io.BytesIO()
                Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling=subsampling)
                encoded.append(file.getvalue())
        encoded.append(encode(pixels, "JPEG", "L"))
        encoded.append(encode(pixels, "JPEG", "CMYK"))
    fast = [decoding.decode_rgb(file) for file in encoded]
    monkeypatch.setattr(decoding, "_simplejpeg", None)
    for pixels, file in zip(fast, encoded, strict=True):
        assert np.array_equal(pixels, decoding.decode_rgb(file))


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "WEBP", "TIFF", "GIF", "JPEG"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_every_usual_format_is_read(decode: Callable[[bytes], NDArray[np.uint8]], image_format: str, mode: str) -> None:
    smooth = np.linspace(0, 255, 16 * 24).reshape(16, 24, 1).repeat(3, axis=2).astype(np.uint8)
    pixels = decode(encode(smooth, image_format, mode))
    assert pixels.shape == (16, 24, 3)
    assert pixels.dtype == np.uint8
    assert np.abs(pixels.astype(int) - smooth).max() <= 12


def test_transparency_is_dropped_and_palettes_are_looked_up(decode: Callable[[bytes], NDArray[np.uint8]]) -> None:
    pixels = noise(3)
    assert np.array_equal(decode(encode(pixels, "PNG", "RGBA")), pixels)
    palette = Image.fromarray(pixels).convert("P")
    file = io.BytesIO()
    palette.save(file, "PNG")
    assert np.array_equal(decode(file.getvalue()), np.asarray(palette.convert("RGB")))


def test_sixteen_bit_images_keep_their_high_byte(decode: Callable[[bytes], NDArray[np.uint8]]) -> None:
    deep = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    file = io.BytesIO()
    Image.fromarray(deep).save(file, "PNG")
    assert np.array_equal(decode(file.getvalue())[..., 1], np.arange(256).reshape(16, 16))


def test_photographs_beyond_pillows_limit_are_read_and_larger_ones_refused_in_words(
    decode: Callable[[bytes], NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert decoding.LARGEST_IMAGE > 14_000 * 14_000
    monkeypatch.setattr(decoding, "LARGEST_IMAGE", 48)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)
    runpy.run_path(decoding.__file__)
    assert Image.MAX_IMAGE_PIXELS == 7, "importing the module has changed Pillow's limit"
    for kind in ("JPEG", "PNG", "GIF", "TIFF"):
        assert decode(encode(noise(1, size=(6, 8)), kind)).shape == (6, 8, 3)
        with pytest.raises(ValueError, match=r"^has 9 x 6 pixels, more than the 48 that are read: scale it down$"):
            decode(encode(noise(1, size=(6, 9)), kind))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_truncated_image_is_refused(
    decode: Callable[[bytes], NDArray[np.uint8]], image_format: str, kept: float
) -> None:
    encoded = encode(noise(1, size=(40, 40)), image_format)
    with pytest.raises(ValueError, match=r"is a damaged image \(.+\)|is no image"):
        decode(encoded[: int(len(encoded) * kept)])


@pytest.mark.parametrize(
    ("encoded", "message"), [(b"", "is empty"), (b"hello" * 50, "is no image, or one of an unknown")]
)
def test_what_is_no_image_is_refused(
    decode: Callable[[bytes], NDArray[np.uint8]], encoded: bytes, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        decode(encoded)


# What is said of a folder that is wrong


def check_error(root: Path, seen: str, where: Path, mend: str, **changes: Any) -> None:
    with pytest.raises(UserError) as info:
        load_folder(root, **changes)
    assert seen in info.value.seen
    assert info.value.where == str(where)
    assert mend in info.value.mend


def test_a_missing_root(tmp_path: Path) -> None:
    check_error(tmp_path / "none", "There is no such folder", tmp_path / "none", "--data.root")


def test_a_root_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check_error(tmp_path / "file", "This is not a folder", tmp_path / "file", "--data.root")


def test_no_train_folder(root: Path) -> None:
    shutil.rmtree(root / "train")
    check_error(root, "has no folder train", root, "train/<class>/")


def test_no_test_folder(root: Path) -> None:
    shutil.rmtree(root / "test")
    check_error(root, "neither a folder test nor a folder val", root, "test/<class>/")


@pytest.mark.parametrize("half", ["train", "test"])
def test_no_class_folders(root: Path, half: str) -> None:
    shutil.rmtree(root / half)
    (root / half).mkdir()
    (root / half / "image.png").write_bytes(encode(noise(0), "PNG"))
    check_error(root, "The images lie flat in the folder, without class folders", root / half, "into class folders")


@pytest.mark.parametrize("half", ["train", "test"])
def test_an_empty_class_folder(root: Path, half: str) -> None:
    for file in (root / half / "dog").iterdir():
        file.unlink()
    (root / half / "dog" / ".hidden").write_text("")
    check_error(root, "class folder has no image in it", root / half / "dog", "remove the folder")


def test_test_classes_that_are_not_train_classes(root: Path) -> None:
    (root / "test" / "dog").rename(root / "test" / "wolf")
    seen = "1 of the 2 classes of test are not among the 2 of train: wolf"
    check_error(root, seen, root / "test", "same class")


@pytest.mark.parametrize("file", ["train/cat/0.png", "train/dog/1.png", "test/dog/0.png"])
@pytest.mark.parametrize(
    ("kept", "seen"), [(0, "is empty"), (5, "is no image"), (150, "is a damaged image")], ids=["none", "start", "most"]
)
def test_an_unreadable_image_is_named(root: Path, file: str, kept: int, seen: str) -> None:
    path = root / file
    path.write_bytes(path.read_bytes()[:kept])
    check_error(
        root,
        f"The image file {seen}",
        path,
        "Put a sound copy in its place, or pass over broken files with --data.broken_files skip",
    )


def test_several_unreadable_images_are_counted_and_named(root: Path) -> None:
    for file in ("train/cat/2.png", "train/dog/0.png", "train/dog/2.png"):
        (root / file).write_bytes(b"")
    seen = "is empty, and 2 more cannot be used either"
    check_error(root, seen, root / "train/cat/2.png", "sound copy")
    check_error(root, f"{root}/train/dog/0.png is empty; {root}/train/dog/2.png is empty", root / "train/cat/2.png", "")


def test_broken_images_are_passed_over_where_that_is_asked_for(root: Path) -> None:
    expected = read(settings(root))
    broken = {"train/cat/0.png": "is empty", "train/dog/2.png": "is no image, or one of an unknown format"}
    for file, fault in broken.items():
        (root / file).write_bytes(b"" if fault == "is empty" else b"text")
    with load_folder(root, broken_files="skip") as source:
        assert source.broken_files() == {str(root / file): fault for file, fault in broken.items()}
        assert (source.spec.train_size, source.spec.test_size) == (4, 2)
    train = read(settings(root, broken_files="skip")).train
    assert torch.equal(train.padded, expected.train.padded[1:5])
    assert train.labels.tolist() == [0, 0, 1, 1]


def test_nothing_but_broken_images_cannot_be_passed_over(root: Path) -> None:
    for file in (root / "test").glob("*/*.png"):
        file.write_bytes(b"")
    check_error(root, "All 2 image files are broken", root / "test", "Unpack", broken_files="skip")


def test_another_size_is_not_broken(root: Path) -> None:
    (root / "train/cat/1.png").write_bytes(encode(noise(0, size=(7, 9)), "PNG"))
    check_error(root, "is 9 x 7 pixels", root / "train/cat/1.png", "--data.image_size", broken_files="skip")


def test_a_broken_link_is_named(root: Path) -> None:
    (root / "train" / "cat" / "9.png").symlink_to(root / "gone.png")
    check_error(root, "cannot be read (No such file or directory)", root / "train/cat/9.png", "sound copy")


@pytest.mark.parametrize("file", ["train/dog/1.png", "test/cat/0.png"])
def test_images_of_another_size_need_a_size(root: Path, file: str) -> None:
    (root / file).write_bytes(encode(noise(0, size=(7, 9)), "PNG"))
    check_error(root, "is 9 x 7 pixels, where the first one is 8 x 8", root / file, "--data.image_size")
    assert load_folder(root, image_size=8).spec.image_size == 8


def test_images_that_are_not_square_need_a_size(root: Path) -> None:
    first = root / "train/cat/0.png"
    first.write_bytes(encode(noise(0, size=(7, 9)), "PNG"))
    check_error(root, "the first one is 9 x 7 pixels", first, "--data.image_size")


def test_images_that_would_not_fit_into_memory(root: Path) -> None:
    # 6 training images of 10 x 10 with their border, 2 test images of 8 x 8, of 3 bytes a pixel.
    needed = (6 * 10 * 10 + 2 * 8 * 8) * 3 / 2**30
    assert load_folder(root, resident_limit_gib=needed * 1.001).spec.train_size == 6
    seen = f"would take {needed:.3g} GiB of memory on each worker"
    check_error(root, seen, root, "--data.image_size", resident_limit_gib=needed * 0.999)


def test_fewer_images_than_one_batch_of_all_workers(root: Path) -> None:
    assert load_folder(root, workers=3).spec.train_size == 6
    seen = "pets has 6 training images, fewer than the 8 that 4 workers draw at once in batches of 2"
    check_error(root, seen, root, "--data.batch_size", workers=4)
