"""The index of a tree of class folders: which files, in which order, of which classes, and what is left out."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from resist_hvd.data.folders import FOLDER, SUFFIXES, ImageIndex, class_folders, in_words, index_images
from resist_hvd.errors import UserError


def touch(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def indexed(root: Path, *classes: str) -> ImageIndex:
    return index_images(root, classes)[0]


def test_files_come_class_by_class_and_sorted(tmp_path: Path) -> None:
    root = touch(tmp_path, "b/2.JPEG", "b/10.jpg", "a/x.png", "a/w.JPEG")
    classes, _ = class_folders(root)
    index = indexed(root, *classes)
    assert classes == ("a", "b")
    assert [index.path(image).relative_to(root).as_posix() for image in range(len(index))] == [
        "a/w.JPEG", "a/x.png", "b/10.jpg", "b/2.JPEG",
    ]  # fmt: skip
    assert index.labels.tolist() == [0, 0, 1, 1]


def test_what_is_no_image_is_left_out_and_counted(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.JPEG", "a/Thumbs.db", "a/desktop.ini", "a/notes.txt", "a/more.TXT", "a/README")
    touch(root, "a/._1.JPEG", "a/.DS_Store", ".cache/1.JPEG")  # hidden: nobody's images, and not mentioned
    touch(root, "a/album.jpg/inside.jpg", "a/@eaDir/1.JPEG", "@eaDir/2.jpg", "__MACOSX/3.jpg", "beside.jpg")
    classes, beside = class_folders(root)
    assert classes == ("a",)
    assert beside == {FOLDER: 2, ".jpg": 1}
    index, left_out = index_images(root, classes)
    assert [index.path(image).name for image in range(len(index))] == ["1.JPEG"]
    assert left_out == {".txt": 2, ".db": 1, ".ini": 1, "": 1, FOLDER: 2}
    assert in_words(left_out) == "2 folders, 5 files (.txt 2, without an ending 1, .db 1, .ini 1)"


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_endings_count_in_any_case(suffix: str, tmp_path: Path) -> None:
    root = touch(tmp_path, f"a/1{suffix}", f"a/2{suffix.upper()}", f"a/{suffix[1:]}")
    index, left_out = index_images(root, ("a",))
    assert (len(index), left_out) == (2, {"": 1})


def test_paths_of_one_length_name_the_same_files(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "a/much-longer-than-others.jpg", "bb/2.jpg", "bb/ä.JPEG")
    index = indexed(root, *class_folders(root)[0])
    for images in ([0, 1, 2, 3], [3, 0], [2], [1, 1, 0]):
        paths = [row.tobytes() for row in index.encoded_paths(np.array(images))]
        assert len({len(path) for path in paths}) == 1
        for path, image in zip(paths, images, strict=True):
            assert os.path.samefile(path, index.path(image))
            assert os.path.normpath(path) == index.encoded_path(image)


def test_names_of_any_bytes(tmp_path: Path) -> None:
    root = touch(tmp_path, "ä ö/naïve photo.jpeg")
    (root / "ä ö").joinpath("\udcff.jpg").touch()
    index = indexed(root, *class_folders(root)[0])
    assert all(index.path(image).exists() for image in range(2))


def test_folders_may_be_numbered_otherwise_than_named(tmp_path: Path) -> None:
    root = touch(tmp_path, "10/a.jpg", "9/b.jpg")
    index, _ = index_images(root, ("cat", "dog"), label_of={"9": 0, "10": 1})
    assert [index.path(image).name for image in range(2)] == ["b.jpg", "a.jpg"]
    assert index.labels.tolist() == [0, 1]


def test_an_index_is_small_and_travels(tmp_path: Path) -> None:
    root = touch(tmp_path, *(f"n0144{c}/n0144{c}_{i:05d}.JPEG" for c in range(5) for i in range(200)))
    index = indexed(root, *class_folders(root)[0])
    sent = pickle.dumps(index)
    assert len(sent) < 50 * len(index)
    assert pickle.loads(sent).path(777) == index.path(777)


def test_a_class_without_images_is_refused_by_name(tmp_path: Path) -> None:
    root = touch(tmp_path, "a/1.jpg", "b/notes.txt", "b/images/1.jpg", "b/1.heic")
    with pytest.raises(UserError) as caught:
        index_images(root, ("a", "b"))
    assert caught.value.where == str(root / "b")
    assert "1 folder, 2 files (.heic 1, .txt 1)" in caught.value.seen
    assert ".jfif" in caught.value.mend


def test_images_without_class_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lie flat in the folder.*launch/prepare-imagenet does it"):
        class_folders(touch(tmp_path, "ILSVRC2012_val_00000001.JPEG"))


def test_a_folder_without_anything(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has no class folders \[.*\]. Put each class's images into"):
        class_folders(tmp_path)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"The folder cannot be read \(No such file or directory\) \[.*/nowhere\]"):
        class_folders(tmp_path / "nowhere")
