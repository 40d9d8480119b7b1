"""launch/prepare-imagenet on small ImageNets in every form in which it is fetched."""

import errno
import gzip
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_imagenet import __main__ as program
from prepare_imagenet.labels import Synsets, parse_labels, read_synsets
from prepare_imagenet.packing import packed
from scipy.io import savemat

from resist_hvd.errors import UserError

from .. import imagenet_sample
from . import runs

ROOT = Path(__file__).resolve().parents[2]
WNIDS = ("n02119789", "n01440764", "n03995372")
"""Three classes in the order of the development kit's numbers, which is not that of their names."""

TRAIN = {f"{wnid}/{wnid}_{number}.JPEG": (wnid, number) for wnid in WNIDS for number in (3, 12)}
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": WNIDS[number % 3] for number in range(1, 6)}
COUNTS = ("--classes=3", "--train-images=6", "--val-images=5")


def picture(*key: object) -> bytes:
    """Return a small JPEG that belongs to this key alone."""
    seed = sum(str(key).encode())
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", comment=str(key).encode())
    return file.getvalue()


def tar(files: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def write(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def devkit_files() -> dict[str, bytes]:
    synsets = np.zeros((5, 1), dtype=[("ILSVRC2012_ID", object), ("WNID", object), ("num_children", object)])
    # Beyond the classes that images have, the published file has the classes above them.
    for row, wnid in enumerate((*WNIDS, "n00001740", "n00002137")):
        synsets[row, 0] = (row + 1, wnid, 0 if row < 3 else 2)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{WNIDS.index(wnid) + 1}\n" for wnid in VAL.values())
    return {
        "ILSVRC2012_devkit_t12/data/meta.mat": meta.getvalue(),
        "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt": truth.encode(),
    }


def train_files() -> dict[str, bytes]:
    return {name: picture(*key) for name, key in TRAIN.items()}


def val_files() -> dict[str, bytes]:
    return {name: picture(name) for name in VAL}


def train_archive() -> bytes:
    classes: dict[str, dict[str, bytes]] = {}
    for name, content in train_files().items():
        wnid, _, file = name.partition("/")
        classes.setdefault(wnid, {})[file] = content
    return tar({f"{wnid}.tar": tar(files) for wnid, files in classes.items()})


@pytest.fixture
def archives(tmp_path: Path) -> Path:
    """The official download: three archives."""
    return write(
        tmp_path / "download",
        {
            "ILSVRC2012_img_train.tar": train_archive(),
            "ILSVRC2012_img_val.tar": tar(val_files()),
            "ILSVRC2012_devkit_t12.tar.gz": gzip.compress(tar(devkit_files())),
        },
    )


@pytest.fixture
def flat(tmp_path: Path) -> Path:
    """Class folders, validation images that lie flat, and the development kit unpacked."""
    folder = write(tmp_path / "download/train", train_files()).parent
    write(folder / "val", val_files())
    return write(folder, devkit_files())


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "imagenet"


@pytest.fixture
def prepare(output: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs the program on `output` to its end, and returns what it printed; a failure is an error here."""

    def run(*flags: str | Path, status: int = 0) -> str:
        capfd.readouterr()
        ended = program.main(["--output", str(output), *COUNTS, *map(str, flags)])
        out, err = capfd.readouterr()
        assert ended == status, (out, err)
        assert (err == "") == (status == 0)
        return out if status == 0 else err

    return run


def sorted_images(output: Path) -> dict[str, bytes]:
    files = [path for half in ("train", "val") for path in (output / half).rglob("*") if path.is_file()]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def expected() -> dict[str, bytes]:
    val = {f"val/{VAL[name]}/{name}": content for name, content in val_files().items()}
    return {f"train/{name}": content for name, content in train_files().items()} | val


# Every form of the download


def test_official_archives_become_class_folders(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    before = runs.contents(archives)
    said = prepare("--download", archives)
    assert "train: 6 images of 3 classes" in said
    assert "val: 5 images of 3 classes" in said
    assert f"--recipe imagenet-resnet50 --data.root {output}" in said
    assert sorted_images(output) == expected()
    assert runs.contents(archives) == before


def test_the_command_itself_runs_from_anywhere(archives: Path, output: Path) -> None:
    command = [ROOT / "launch/prepare-imagenet", "--download", archives, "--output", output]
    done = subprocess.run([*command, *COUNTS], capture_output=True, text=True, cwd="/", timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted_images(output) == expected()
    refused = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=60, check=False)
    assert refused.returncode == 2
    assert refused.stderr.startswith("launch/prepare-imagenet: train has 3 classes and 6 images, and not 1,000 classes")


@pytest.mark.parametrize("manner", ["link", "symlink", "copy", "move"])
def test_flat_validation_images_are_sorted_in_any_manner(
    flat: Path, output: Path, prepare: Callable[..., str], manner: str
) -> None:
    before = runs.contents(flat)
    prepare("--download", flat, "--files", manner)
    assert sorted_images(output) == expected()
    image = output / "val" / VAL["ILSVRC2012_val_00000002.JPEG"] / "ILSVRC2012_val_00000002.JPEG"
    assert image.is_symlink() == (manner == "symlink")
    assert image.stat().st_nlink == (2 if manner == "link" else 1)
    images = [name for name in before if name.endswith(".JPEG")]
    left = runs.contents(flat)
    assert left == (before if manner != "move" else {k: v for k, v in before.items() if k not in images})


def test_the_download_may_be_sorted_where_it_lies(flat: Path, output: Path, prepare: Callable[..., str]) -> None:
    flat.rename(output)
    prepare("--download", output, "--files", "move")
    assert sorted_images(output) == expected() | {}
    assert [path.name for path in (output / "val").iterdir() if path.is_file()] == []


def test_class_archives_in_a_folder_and_names_that_end_in_a_class(
    tmp_path: Path, output: Path, prepare: Callable[..., str]
) -> None:
    with tarfile.open(fileobj=io.BytesIO(train_archive())) as archive:
        archive.extractall(tmp_path / "classes", filter="data")
    named = {name.replace(".JPEG", f"_{VAL[name]}.JPEG"): content for name, content in val_files().items()}
    write(tmp_path / "named", {"images.tar.gz": gzip.compress(tar(named))})
    prepare("--train", tmp_path / "classes", "--val", tmp_path / "named/images.tar.gz")
    assert sorted(sorted_images(output).values()) == sorted(expected().values())


def test_an_archive_of_class_folders(tmp_path: Path, output: Path, prepare: Callable[..., str]) -> None:
    write(tmp_path, {"all.tar": tar({f"./imagenet/train/{name}": content for name, content in train_files().items()})})
    prepare("--train", tmp_path / "all.tar")
    assert sorted_images(output) == {f"train/{name}": content for name, content in train_files().items()}


def test_kaggles_layout(tmp_path: Path, output: Path, prepare: Callable[..., str]) -> None:
    folder = write(tmp_path / "kaggle/ILSVRC/Data/CLS-LOC/train", train_files())
    write(folder.parent / "val", val_files())
    rows = [f"{name[:-5]},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for name, wnid in reversed(VAL.items())]
    (tmp_path / "kaggle/LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    prepare("--download", tmp_path / "kaggle")
    assert sorted_images(output) == expected()


LABELS = {
    "image-wnid.txt": "".join(f"{name} {wnid}\n" for name, wnid in VAL.items()),
    "image-wnid.csv": "".join(f"{name},{wnid}\n" for name, wnid in VAL.items()),
    "wnids.txt": "".join(f"{wnid}\n" for wnid in VAL.values()),
    "caffe.txt": "".join(f"{name} {sorted(WNIDS).index(wnid)}\n" for name, wnid in VAL.items()),
    "paths.txt": "".join(f"val/{wnid}/{name}\n" for name, wnid in VAL.items()),
    "script.sh": "".join(f"mkdir -p {w}\n" for w in WNIDS) + "".join(f"mv {n} {w}/\n" for n, w in VAL.items()),
}


@pytest.mark.parametrize("name", LABELS)
def test_every_usual_file_of_labels(flat: Path, output: Path, prepare: Callable[..., str], name: str) -> None:
    (flat / name).write_text(LABELS[name])
    prepare("--train", flat / "train", "--val", flat / "val", "--labels", flat / name)
    assert sorted_images(output) == expected()


@pytest.mark.parametrize(
    "synsets",
    [
        pytest.param("".join(f"{wnid} words, more words\n" for wnid in WNIDS), id="in-the-kit's-order"),
        pytest.param("".join(f"{w} {WNIDS.index(w) + 1} words\n" for w in sorted(WNIDS)), id="with-the-kit's-numbers"),
    ],
)
def test_ground_truth_with_a_list_of_synsets(
    flat: Path, output: Path, prepare: Callable[..., str], synsets: str
) -> None:
    (flat / "synsets.txt").write_text(synsets)
    truth = flat / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    prepare(
        "--train", flat / "train", "--val", flat / "val", "--labels", truth, "--synsets", flat / "synsets.txt"
    )  # fmt: skip
    assert sorted_images(output) == expected()


def test_each_half_may_be_prepared_alone(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    prepare("--train", archives / "ILSVRC2012_img_train.tar")
    assert not (output / "val").exists()
    (archives / "ILSVRC2012_img_train.tar").unlink()
    assert "train" not in prepare("--download", archives).partition("complete")[0]
    assert sorted_images(output) == expected()


# Stopped and run again


def test_a_second_run_does_nothing(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    prepare("--download", archives)
    times = {path: path.stat().st_mtime_ns for half in ("train", "val") for path in (output / half).rglob("*.JPEG")}
    said = prepare("--download", archives)
    assert "train: 0 put into place, 6 were there" in said
    assert "val: 0 put into place, 5 were there" in said
    assert times == {path: path.stat().st_mtime_ns for path in times}


@pytest.mark.parametrize("manner", ["link", "symlink", "copy", "move"])
def test_a_run_that_was_stopped_goes_on(flat: Path, output: Path, prepare: Callable[..., str], manner: str) -> None:
    prepare("--download", flat, "--files", manner)
    everything = sorted_images(output)
    lost = output / "train" / next(iter(TRAIN))
    write(flat / "train", {next(iter(TRAIN)): lost.read_bytes()})
    lost.unlink()
    lost.with_name(f".{lost.name}.partial").write_bytes(b"half")
    if manner == "move":
        lost.with_name(f".{lost.name}.partial").unlink()
    said = prepare("--train", flat / "train", "--files", manner)
    assert "train: 1 put into place" in said
    left = {name: content for name, content in sorted_images(output).items() if not name.endswith(".partial")}
    assert left == everything


def test_moving_again_removes_what_had_been_copied_whole_and_nothing_else(
    flat: Path, output: Path, prepare: Callable[..., str]
) -> None:
    prepare("--download", flat, "--files", "copy")
    name = next(iter(TRAIN))
    changed = flat / "train" / name
    content = bytearray(changed.read_bytes())
    content[-3] ^= 1
    changed.write_bytes(content)
    said = prepare("--train", flat / "train", "--files", "move", status=2)
    assert f"[{output / 'train' / name}]" in said
    assert changed.read_bytes() == content
    changed.write_bytes((output / "train" / name).read_bytes())
    prepare("--train", flat / "train", "--files", "move")
    assert list((flat / "train").rglob("*.JPEG")) == []
    assert sorted_images(output) == expected()


def test_a_link_to_the_only_copy_is_not_taken_for_a_copy(flat: Path, output: Path, prepare: Callable[..., str]) -> None:
    (output / "val").mkdir(parents=True)
    (output / "train").symlink_to(flat / "train")
    prepare("--train", flat / "train", "--files", "move")
    assert len(list((flat / "train").rglob("*.JPEG"))) == 6
    (output / "train").unlink()
    prepare("--train", flat / "train", "--files", "symlink")
    said = prepare("--train", flat / "train", "--files", "move")
    assert "0 put into place" in said
    assert sorted_images(output) == {f"train/{name}": content for name, content in train_files().items()}


@pytest.mark.parametrize(
    ("kept", "seen"),
    [(0.5, "The archive is damaged or incomplete"), (1 / 3, "train has 1 classes and 2 images, and not")],
)
def test_an_archive_that_was_cut_short_is_told_and_the_whole_one_goes_on(
    archives: Path, output: Path, prepare: Callable[..., str], kept: float, seen: str
) -> None:
    path = archives / "ILSVRC2012_img_train.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        end_of_classes = archive.getmembers()[-1].offset_data + archive.getmembers()[-1].size
    # A third ends exactly with the first class, as a download may; half of it in the middle of a class.
    path.write_bytes(whole[: int(end_of_classes * kept)])
    said = prepare("--download", archives, status=2)
    where, mend = (f"{path}, n01440764.tar", "Fetch it again") if kept == 0.5 else (output / "train", "Fetch what is")
    check_refused(said, seen, where, mend)
    path.write_bytes(whole)
    prepare("--download", archives)
    assert sorted_images(output) == expected()


def test_two_runs_at_once_are_refused(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    output.mkdir()
    with program._alone(output):
        said = prepare("--download", archives, status=2)
    check_refused(said, "Another launch/prepare-imagenet is at work here", output, "Wait until it has ended")


# What is wrong with a download


def test_a_file_system_without_locks_will_do(
    archives: Path, output: Path, prepare: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(program.fcntl, "flock", refuse)
    assert f"{output} has no locks" in prepare("--download", archives)
    assert sorted_images(output) == expected()


def test_what_validation_lacks_is_noticed_before_training_is_unpacked(
    archives: Path, output: Path, prepare: Callable[..., str]
) -> None:
    kit = devkit_files()
    del kit["ILSVRC2012_devkit_t12/data/meta.mat"]
    (archives / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(gzip.compress(tar(kit)))
    said = prepare("--download", archives, status=2)
    assert "The development kit has no meta.mat" in said
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    said = prepare("--download", archives, status=2)
    assert "nothing says of which class they are" in said
    assert not (output / "train").exists()


def test_litter_is_not_counted(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    prepare("--download", archives)
    folder = next((output / "train").iterdir())
    write(folder, {"Thumbs.db": b"", "desktop.ini": b"", "album.jpg/1.jpg": b""})
    assert "train: 6 images of 3 classes" in prepare("--download", archives)


@pytest.mark.parametrize("given", ["kaggle/ILSVRC", "."])
def test_a_download_one_level_away_is_told(tmp_path: Path, prepare: Callable[..., str], given: str) -> None:
    write(tmp_path / "kaggle/ILSVRC/Data/CLS-LOC/train", train_files())
    said = prepare("--download", tmp_path / given, status=2)
    seen = "There are neither training nor validation images"
    check_refused(said, seen, tmp_path / given, f"give --download {tmp_path / 'kaggle'}.")


def test_a_download_that_is_not_there_is_told(tmp_path: Path, prepare: Callable[..., str]) -> None:
    said = prepare("--download", tmp_path / "none", status=2)
    check_refused(said, "There is no such file or folder", f"--download {tmp_path}/none", "what was fetched")


@pytest.mark.parametrize("name", ["../n01440764/evil.JPEG", "n01440764/../../evil.JPEG", "n01440764.tar/../../x.JPEG"])
def test_names_that_lead_out_of_an_archive_are_refused(
    tmp_path: Path, output: Path, prepare: Callable[..., str], name: str
) -> None:
    write(tmp_path, {"evil.tar": tar({name: b"evil"})})
    said = prepare("--train", tmp_path / "evil.tar", status=2)
    assert f"The archive has an entry that is not safe to unpack: {name!r} (leads out of the folder)" in said
    assert f"[{tmp_path / 'evil.tar'}]" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["evil.tar", "imagenet"]


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_an_archive_come_to_nothing(
    tmp_path: Path, output: Path, prepare: Callable[..., str], kind: bytes
) -> None:
    entry = tarfile.TarInfo("n01440764/evil.JPEG")
    entry.type, entry.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "evil.tar", "w") as archive:
        archive.addfile(entry)
    said = prepare("--train", tmp_path / "evil.tar", status=2)
    assert "is not safe to unpack" in said
    assert sorted_images(output) == {}


def test_absolute_names_stay_below_the_output(tmp_path: Path, output: Path, prepare: Callable[..., str]) -> None:
    write(tmp_path, {"odd.tar": tar({f"{tmp_path}/train/{name}": c for name, c in train_files().items()})})
    prepare("--train", tmp_path / "odd.tar")
    assert len(sorted_images(output)) == 6
    assert not (tmp_path / "train").exists()


def check_refused(said: str, seen: str, where: object, mend: str) -> None:
    assert said.startswith(f"launch/prepare-imagenet: {seen}"), said
    assert f"[{where}]. " in said
    assert mend in said
    assert said.count("\n") == 1


def test_missing_places_are_named(tmp_path: Path, prepare: Callable[..., str]) -> None:
    said = prepare("--train", tmp_path / "no.tar", status=2)
    check_refused(said, "There is no such file or folder", f"--train {tmp_path / 'no.tar'}", "Give what was fetched")
    said = prepare("--download", tmp_path, status=2)
    check_refused(said, "There are neither training nor validation images", tmp_path, "--download")
    write(tmp_path / "train", {"readme.txt": b"no image", "dog/1.JPEG": picture(1)})
    said = prepare("--train", tmp_path / "train", status=2)
    check_refused(said, "There are no images of ImageNet's names here", tmp_path / "train", "class folders")


def test_counts_are_checked_and_other_numbers_can_be_given(
    archives: Path, output: Path, prepare: Callable[..., str]
) -> None:
    said = prepare("--download", archives, "--val-images=50000", status=2)
    seen = "val has 3 classes and 5 images, and not 3 classes and 50,000 images"
    check_refused(said, seen, output / "val", "--val-images")
    (output / "train/n00000001").mkdir()
    said = prepare("--download", archives, "--classes=4", status=2)
    check_refused(said, "train has 4 classes, 1 of them empty (n00000001) and 6", output / "train", "--train-images")


def test_flat_images_need_labels_that_know_them(flat: Path, tmp_path: Path, prepare: Callable[..., str]) -> None:
    image = flat / "val/ILSVRC2012_val_00000001.JPEG"
    said = prepare("--val", flat / "val", status=2)
    check_refused(said, "The images lie flat, and nothing says of which class they are", image, "--devkit")
    (tmp_path / "labels.txt").write_text("other.JPEG n01440764\n")
    said = prepare("--val", flat / "val", "--labels", tmp_path / "labels.txt", status=2)
    check_refused(said, "The file of classes has no line for this image; it has 1 others", image, "--labels")


def test_validation_classes_that_training_lacks_are_named(
    flat: Path, output: Path, prepare: Callable[..., str]
) -> None:
    (flat / "labels").write_text(LABELS["image-wnid.txt"].replace("n03995372", "n09999999"))
    said = prepare("--train", flat / "train", "--val", flat / "val", "--labels", flat / "labels", status=2)
    check_refused(said, "1 classes of val are not in train: n09999999", output / "val", "--synsets")


def test_a_name_that_is_taken_by_another_file_is_left_alone(
    archives: Path, output: Path, prepare: Callable[..., str]
) -> None:
    name = next(iter(TRAIN))
    write(output / "train", {name: b"something else"})
    said = prepare("--download", archives, status=2)
    seen = f"Another file of that name, or a broken link, lies where {archives}/ILSVRC2012_img_train.tar"
    check_refused(said, seen, output / "train" / name, "another --output")
    assert (output / "train" / name).read_bytes() == b"something else"


def test_a_folder_that_cannot_be_written_is_named(archives: Path, tmp_path: Path, output: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    flags = ["--download", str(archives), "--output", str(tmp_path / "file/imagenet")]
    assert program.main(flags) == 2


# Files of labels


def parse(text: str, synsets: Synsets | None = None) -> dict[str, str]:
    return dict(parse_labels(text.encode(), "labels", synsets, classes=()))


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "The file is empty"),
        ("x.JPEG cat\n", "Line 1 gives the class 'cat', which is no wnid"),
        ("x.JPEG n01440764\nx.JPEG n02119789\n", "x has two classes"),
        ("1\n2\n", "The file gives classes by numbers, here 1, and nothing says what they stand for"),
    ],
)
def test_labels_that_mean_nothing_are_refused(text: str, seen: str) -> None:
    with pytest.raises(UserError) as info:
        parse(text)
    assert info.value.seen.startswith(seen)


def test_numbers_are_held_to_their_range(tmp_path: Path) -> None:
    synsets = Synsets(by_id={1: "n02119789", 2: "n01440764"}, in_order=("n01440764", "n02119789"))
    assert parse("2\n1\n", synsets) == {
        "ILSVRC2012_val_00000001": "n01440764",
        "ILSVRC2012_val_00000002": "n02119789",
    }
    assert parse("a.JPEG 1\n", synsets) == {"a": "n02119789"}
    for text, seen in (
        ("0\n", "Class 0 is none of the 2 that are numbered from 1 to 2"),
        ("a.JPEG 2\n", "from 0 to 1"),
    ):
        with pytest.raises(UserError, match=seen):
            parse(text, synsets)


def test_a_sorted_list_is_never_taken_for_the_kits_order(tmp_path: Path) -> None:
    path = tmp_path / "synset_words.txt"
    path.write_text("".join(f"{wnid} words\n" for wnid in sorted(WNIDS)))
    synsets = read_synsets(path)
    assert list(synsets.in_order) == sorted(WNIDS)
    with pytest.raises(UserError, match="A sorted list is not in that order"):
        parse("1\n2\n", synsets)


def test_damaged_lists_and_kits_are_named(tmp_path: Path, flat: Path, prepare: Callable[..., str]) -> None:
    path = tmp_path / "synsets.txt"
    path.write_text("n01440764 fish\ncat\n")
    with pytest.raises(UserError, match="Line 2 begins with 'cat', which is no wnid"):
        read_synsets(path)
    path = tmp_path / "meta.mat"
    path.write_bytes(b"no matrix")
    with pytest.raises(UserError, match=r"not the development kit's meta\.mat"):
        read_synsets(path)
    kit = tmp_path / "kit.tar.gz"
    kit.write_bytes(gzip.compress(tar(devkit_files()))[:-200])
    said = prepare("--val", flat / "val", "--devkit", kit, status=2)
    check_refused(said, "The development kit is damaged or incomplete", kit, "Fetch it again")
    kit.write_bytes(gzip.compress(tar({"data/meta.mat": b""})))
    said = prepare("--val", flat / "val", "--devkit", kit, status=2)
    check_refused(said, "The development kit has no ILSVRC2012_validation_ground_truth.txt", kit, "devkit_t12.tar.gz")


# Packing


def test_photographs_are_packed_and_go_on_where_they_were_stopped(
    tmp_path: Path, output: Path, prepare: Callable[..., str]
) -> None:
    real = imagenet_sample.read(12)
    cut = next(iter(real.values()))[:2000]
    files = {f"{wnid}/{wnid}_1.JPEG": content for wnid, content in real.items()} | {"n00000001/cut.JPEG": cut}
    write(tmp_path / "train", files)
    flags = ("--train", tmp_path / "train", "--pack=256", "--classes=13", "--train-images=13")
    said = prepare(*flags)
    assert f"kept as it is: {tmp_path}/train/n00000001/cut.JPEG is a damaged image" in said
    result = sorted_images(output)
    assert set(result) == {f"train/{name}" for name in files}
    for name, content in files.items():
        if content == cut:
            assert result[f"train/{name}"] == cut
            continue
        before, after = (Image.open(io.BytesIO(encoded)) for encoded in (content, result[f"train/{name}"]))
        assert min(after.size) == min(256, *before.size)
        assert after.size[0] / after.size[1] == pytest.approx(before.size[0] / before.size[1], rel=0.01)
        assert after.format == "JPEG"
        small = [np.asarray(image.convert("RGB").resize((32, 32), 4), dtype=float) for image in (before, after)]
        assert np.abs(small[0] - small[1]).mean() < 2.5
    assert sum(map(len, result.values())) < 0.7 * sum(map(len, files.values()))
    lost = output / "train" / next(iter(files))
    lost.unlink()
    assert "train: 1 put into place, 12 were there" in prepare(*flags)
    assert sorted_images(output) == result


def test_what_needs_no_packing_stays_as_it_is_and_all_else_becomes_a_jpeg() -> None:
    small = picture("small")
    assert packed(small, 256) == small
    image = Image.fromarray(np.full((300, 600, 3), 90, dtype=np.uint8))
    for mode, kind in (("RGB", "PNG"), ("CMYK", "JPEG"), ("L", "PNG"), ("L", "JPEG")):
        file = io.BytesIO()
        image.convert(mode).save(file, kind)
        after = Image.open(io.BytesIO(packed(file.getvalue(), 256)))
        assert (after.format, after.mode, after.size) == ("JPEG", "RGB", (512, 256))
        assert np.abs(np.asarray(after).astype(int) - 90).max() <= 6
    with pytest.raises(ValueError, match="is no image"):
        packed(b"hello" * 50, 256)


def test_the_side_that_is_up_stays_known() -> None:
    image = Image.fromarray(np.zeros((600, 300, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    assert Image.open(io.BytesIO(packed(file.getvalue(), 256))).getexif()[0x0112] == 6


def test_a_folder_is_not_packed_in_two_ways(
    archives: Path, flat: Path, output: Path, prepare: Callable[..., str]
) -> None:
    prepare("--download", archives, "--pack=256")
    said = prepare("--download", archives, "--pack=300", status=2)
    seen = "The folder was begun with --pack 256, and this is a run with --pack 300"
    check_refused(said, seen, output, "another --output")
    said = prepare("--download", archives, status=2)
    check_refused(said, "The folder was begun with --pack 256, and this is a run with no --pack", output, "Go on as")
    said = prepare("--download", archives, "--pack=256", "--files=copy", status=2)
    assert "--files copy and --pack are both given" in said
    said = prepare("--train", output / "train", "--pack=256", status=2)
    check_refused(said, "Images are not packed where they lie", output / "train", "another --output")


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("--pack", "100", "'100' is not a number of pixels from 256 to 2048"),
        ("--pack", "big", "'big' is not a number of pixels"),
        ("--pack", "4000", "'4000' is not a number of pixels"),
        ("--threads", "0", "'0' is not a number from 1 on"),
        ("--val-images", "-5", "'-5' is not a number from 1 on"),
        ("--files", "rename", "invalid choice: 'rename'"),
    ],
)
def test_flags_that_are_wrong_are_refused(
    tmp_path: Path, flag: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        program.parse_flags(["--output", str(tmp_path), f"{flag}={value}"])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_help_names_every_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.parse_flags(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for flag in (
        "--download",
        "--train",
        "--val",
        "--devkit",
        "--labels",
        "--synsets",
        "--files",
        "--pack",
        "--classes",
    ):
        assert flag in said
