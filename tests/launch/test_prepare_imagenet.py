"""launch/prepare-imagenet on small ImageNets: official archives, Kaggle's layout and class folders."""

import errno
import gzip
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prepare_imagenet import __main__ as program
from prepare_imagenet import halves, placing
from prepare_imagenet.placing import packed
from scipy.io import savemat
from torchvision.datasets import imagenet

from resist_hvd.errors import UserError

from .. import imagenet_sample
from . import runs

ROOT = Path(__file__).resolve().parents[2]
WNIDS = ("n02119789", "n01440764", "n03995372")
"""Three classes in the order of the development kit's numbers, which is not that of their names."""

TRAIN = {f"{wnid}/{wnid}_{number}.JPEG": (wnid, number) for wnid in WNIDS for number in (3, 12)}
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": WNIDS[number % 3] for number in range(1, 6)}
KAGGLE = "ILSVRC/Data/CLS-LOC"


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


def train_files() -> dict[str, bytes]:
    return {name: picture(*key) for name, key in TRAIN.items()}


def val_files() -> dict[str, bytes]:
    return {name: picture(name) for name in VAL}


def devkit() -> bytes:
    fields = ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")
    synsets = np.zeros((5, 1), dtype=[(field, object) for field in fields])
    # Beyond the classes that images have, the published file has the classes above them.
    for row, wnid in enumerate((*WNIDS, "n00001740", "n00002137")):
        synsets[row, 0] = (row + 1, wnid, "words, others", "gloss", 0 if row < 3 else 2)
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets})
    truth = "".join(f"{WNIDS.index(wnid) + 1}\n" for wnid in VAL.values())
    files = {"meta.mat": meta.getvalue(), "ILSVRC2012_validation_ground_truth.txt": truth.encode()}
    return gzip.compress(tar({f"ILSVRC2012_devkit_t12/data/{name}": content for name, content in files.items()}))


@pytest.fixture(autouse=True)
def small_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(halves, "CLASSES", 3)
    monkeypatch.setattr(halves, "IMAGES", {"val": 5, "train": 6})


@pytest.fixture
def archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The official download, of which torchvision knows the MD5 sums."""
    classes: dict[str, dict[str, bytes]] = {}
    for name, content in train_files().items():
        wnid, _, file = name.partition("/")
        classes.setdefault(wnid, {})[file] = content
    files = {
        "train": ("ILSVRC2012_img_train.tar", tar({f"{wnid}.tar": tar(files) for wnid, files in classes.items()})),
        "val": ("ILSVRC2012_img_val.tar", tar(val_files())),
        "devkit": ("ILSVRC2012_devkit_t12.tar.gz", devkit()),
    }
    sums = {part: (name, hashlib.md5(content).hexdigest()) for part, (name, content) in files.items()}
    monkeypatch.setattr(imagenet, "ARCHIVE_META", sums)
    return write(tmp_path / "download", dict(files.values()))


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    folder = write(tmp_path / "kaggle", {f"{KAGGLE}/train/{name}": content for name, content in train_files().items()})
    rows = [f"{name[:-5]},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n" for name, wnid in reversed(VAL.items())]
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    return write(folder, {f"{KAGGLE}/val/{name}": content for name, content in val_files().items()})


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "imagenet"


@pytest.fixture
def prepare(output: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Prepares a download in `output`, and returns what was printed."""

    def run(download: Path, *, pack: int | None = None, subset: bool = False) -> str:
        halves.prepare(download, output, pack=pack, subset=subset)
        return capfd.readouterr().out

    return run


def refused(prepare: Callable[..., str], download: Path, **flags: object) -> UserError:
    with pytest.raises(UserError) as info:
        prepare(download, **flags)
    return info.value


def placed(output: Path) -> dict[str, bytes]:
    """Everything in `output` but the lock."""
    files = [path for path in output.rglob("*") if path.is_file() and path.name != ".prepare-imagenet.lock"]
    return {str(path.relative_to(output)): path.read_bytes() for path in files}


def expected() -> dict[str, bytes]:
    val = {f"val/{VAL[name]}/{name}": content for name, content in val_files().items()}
    return {f"train/{name}": content for name, content in train_files().items()} | val


# The forms of a download


def test_official_archives_become_class_folders(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    before = runs.contents(archives)
    said = prepare(archives)
    assert "train: 6 images of 3 classes" in said
    assert "val: 5 images of 3 classes" in said
    assert f"--recipe imagenet-resnet50 --data.root {output}" in said
    assert placed(output) == expected()
    assert runs.contents(archives) == before


def test_kaggles_layout_is_linked(kaggle: Path, output: Path, prepare: Callable[..., str]) -> None:
    before = runs.contents(kaggle)
    assert "train: 6 linked" in prepare(kaggle)
    assert placed(output) == expected()
    assert (output / "train" / next(iter(TRAIN))).stat().st_nlink == 2
    assert runs.contents(kaggle) == before


def test_what_cannot_be_linked_is_copied_and_links_are_followed(
    kaggle: Path, tmp_path: Path, output: Path, prepare: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = next(iter(TRAIN))
    (kaggle / KAGGLE / "train" / name).rename(tmp_path / "elsewhere.JPEG")
    (kaggle / KAGGLE / "train" / name).symlink_to("../../../../../../elsewhere.JPEG")
    prepare(kaggle)
    assert not (output / "train" / name).is_symlink()
    shutil.rmtree(output)

    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(placing.os, "link", refuse)
    assert "train: 6 copied" in prepare(kaggle)
    assert placed(output) == expected()
    assert (output / "train" / name).stat().st_nlink == 1


def test_each_half_may_come_alone(archives: Path, kaggle: Path, output: Path, prepare: Callable[..., str]) -> None:
    (archives / "ILSVRC2012_img_train.tar").unlink()
    said = prepare(archives)
    assert f"train is not in {archives}" in said
    assert "--data.root" not in said
    shutil.rmtree(kaggle / KAGGLE / "val")
    assert "--data.root" in prepare(kaggle)
    assert placed(output) == expected()


def test_a_part_of_imagenet_is_counted_where_that_is_wanted(
    kaggle: Path, output: Path, prepare: Callable[..., str]
) -> None:
    lost = kaggle / KAGGLE / "train" / next(iter(TRAIN))
    content = lost.read_bytes()
    lost.unlink()
    error = refused(prepare, kaggle)
    assert error.seen == "train has 5 images of 3 classes, and ImageNet 6 of 3"
    assert error.where == str(kaggle / KAGGLE / "train")
    assert "--subset" in error.mend
    assert not (output / "train").exists()
    lost.write_bytes(content)
    prepare(kaggle)
    assert placed(output) == expected()
    (output / "train" / next(iter(TRAIN))).unlink()
    error = refused(prepare, kaggle)
    assert ("5 images", str(output / "train")) == (error.seen[10:18], error.where)
    assert "train: 5 images of 3 classes" in prepare(kaggle, subset=True)


# Stopped and run again


def test_a_second_run_does_nothing(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    prepare(archives)
    times = {path: path.stat().st_mtime_ns for path in output.rglob("*.JPEG")}
    said = prepare(archives)
    assert f"train is in {output} already" in said
    assert "train: 6 images of 3 classes" in said
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("*.JPEG")}


@pytest.mark.parametrize("unpacked", range(6))
def test_unpacking_that_was_stopped_begins_anew(
    archives: Path, output: Path, prepare: Callable[..., str], monkeypatch: pytest.MonkeyPatch, unpacked: int
) -> None:
    extract, left = imagenet.extract_archive, iter(range(unpacked))

    def stopped(*arguments: object, **flags: object) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        extract(*arguments, **flags)

    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "extract_archive", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(archives)
    assert not (output / "train").exists()
    assert (output / "val").exists() == (unpacked >= 2)
    prepare(archives)
    assert placed(output) == expected()


@pytest.mark.parametrize("source", ["archives", "kaggle"])
def test_placing_that_was_stopped_goes_on(
    source: str,
    output: Path,
    prepare: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    download = request.getfixturevalue(source)
    last = output / ".train.256" / list(TRAIN)[-1]

    def stopped(file: Path, target: Path, pack: int | None) -> str:
        if target == last:
            target.with_name(f".{target.name}.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return placing.place(file, target, pack)

    with monkeypatch.context() as patch:
        patch.setattr(halves, "place", stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare(download, pack=256)
    assert not (output / "train").exists()
    # What was unpacked is not unpacked again.
    monkeypatch.setattr(imagenet, "parse_train_archive", None)
    said = prepare(download, pack=256)
    assert "there before" in said
    assert "packed" in said
    assert placed(output) == expected()


def test_what_another_download_has_left_is_not_mixed_in(
    kaggle: Path, output: Path, prepare: Callable[..., str]
) -> None:
    write(output / ".train.linked", {f"{WNIDS[0]}/other.JPEG": b"other"})
    error = refused(prepare, kaggle)
    assert error.where == str(output / ".train.linked")
    assert not (output / "train").exists()


def test_two_runs_at_once_are_refused(archives: Path, output: Path, prepare: Callable[..., str]) -> None:
    output.mkdir()
    with halves._alone(output):
        assert refused(prepare, archives).where == str(output)
    assert placed(output) == {}


def test_a_file_system_without_locks_will_do(
    archives: Path, output: Path, prepare: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(halves.fcntl, "flock", refuse)
    prepare(archives)
    assert placed(output) == expected()


# What is wrong with a download


@pytest.mark.parametrize("name", ["ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"])
@pytest.mark.parametrize("content", [None, tar({"../evil.JPEG": b"evil"}), b"no archive"])
def test_an_archive_that_is_not_imagenets_to_the_bit_is_not_opened(
    archives: Path, output: Path, prepare: Callable[..., str], name: str, content: bytes | None
) -> None:
    path = archives / name
    path.write_bytes(path.read_bytes()[:-1] if content is None else content)
    error = refused(prepare, archives)
    assert str(path) in error.seen
    assert "MD5" in error.mend
    assert (output / "val").exists() == (name == "ILSVRC2012_img_train.tar")
    assert not (output / "train").exists()
    assert not list(output.parent.rglob("evil.JPEG"))


def test_a_missing_development_kit_is_noticed_before_unpacking(
    archives: Path, output: Path, prepare: Callable[..., str]
) -> None:
    (archives / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    error = refused(prepare, archives)
    assert "ILSVRC2012_devkit_t12.tar.gz" in error.seen
    assert error.where == str(archives)
    assert placed(output) == {}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ImageId,PredictionString\n",
        "ImageId,Classes\nILSVRC2012_val_00000001,n01440764 1 2 3 4\n",
        "ImageId,PredictionString\nILSVRC2012_val_00000001\n",
        "ImageId,PredictionString\nILSVRC2012_val_00000001, \n",
        "ImageId,PredictionString\nILSVRC2012_val_00000001,../../evil 1 2 3 4\n",
        "ImageId,PredictionString\nILSVRC2012_val_00000001,n01440764\xff\n",
    ],
)
def test_a_damaged_list_of_classes_is_refused(
    kaggle: Path, output: Path, prepare: Callable[..., str], text: str
) -> None:
    (kaggle / "LOC_val_solution.csv").write_text(text, encoding="latin-1")
    assert refused(prepare, kaggle).where == str(kaggle / "LOC_val_solution.csv")
    assert placed(output) == {}


def test_flat_images_need_a_list_that_knows_them(kaggle: Path, prepare: Callable[..., str]) -> None:
    write(kaggle / KAGGLE / "val", {"ILSVRC2012_val_00000009.JPEG": picture(9)})
    assert "ILSVRC2012_val_00000009.JPEG" in refused(prepare, kaggle).seen
    (kaggle / "LOC_val_solution.csv").unlink()
    error = refused(prepare, kaggle)
    assert error.where == str(kaggle / KAGGLE / "val")
    assert "LOC_val_solution.csv" in error.mend


def test_a_download_without_images_is_told(tmp_path: Path, prepare: Callable[..., str]) -> None:
    assert refused(prepare, tmp_path).where == str(tmp_path)
    assert refused(prepare, tmp_path / "none").where == str(tmp_path / "none")
    write(tmp_path / "train", {"readme.txt": b"no image"})
    assert refused(prepare, tmp_path).where == str(tmp_path / "train")


def test_a_folder_that_cannot_be_written_is_named(kaggle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UserError, match=str(tmp_path / "file")):
        halves.prepare(kaggle, tmp_path / "file/imagenet", pack=None, subset=False)


# Packing


def test_photographs_are_packed(tmp_path: Path, output: Path, prepare: Callable[..., str]) -> None:
    real = imagenet_sample.read(12)
    cut = next(iter(real.values()))[:2000]
    files = {f"{wnid}/{wnid}_1.JPEG": content for wnid, content in real.items()} | {"n00000001/cut.JPEG": cut}
    write(tmp_path / "train", files)
    said = prepare(tmp_path, pack=256, subset=True)
    assert f"kept as it is: {tmp_path}/train/n00000001/cut.JPEG is a damaged image" in said
    assert "train: 13 images of 13 classes" in said
    result = placed(output)
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


# The command


def test_the_command_runs_from_anywhere_and_its_errors_are_a_line(kaggle: Path, output: Path) -> None:
    command = [ROOT / "launch/prepare-imagenet", "--download", kaggle, "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300, check=False)
    assert done.returncode == 2
    assert "ImageNet 50,000 of 1,000" in done.stderr
    assert done.stderr.count("\n") == 1
    command.append("--subset")
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert placed(output) == expected()


def test_a_missing_installation_is_told(tmp_path: Path) -> None:
    for name in ("prepare-imagenet", "common.sh"):
        (tmp_path / "launch").mkdir(exist_ok=True)
        shutil.copy(ROOT / "launch" / name, tmp_path / "launch" / name)
    done = subprocess.run([tmp_path / "launch/prepare-imagenet"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"{tmp_path}/.venv: run launch/setup" in done.stderr


@pytest.mark.parametrize("value", ["100", "4000", "big"])
def test_sizes_that_are_wrong_are_refused(tmp_path: Path, value: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.parse_flags(["--download", str(tmp_path), "--output", str(tmp_path), f"--pack={value}"])
    assert ended.value.code == 2
    assert f"{value!r} is not a number of pixels from 256 to 2048" in capsys.readouterr().err
