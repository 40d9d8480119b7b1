"""The report in a real browser: it shows every picture, and has nothing to complain of."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from resist_hvd import report
from resist_hvd.reporting.reading import read_runs

from ..single.report_runs import write_run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

LOOK = """<script>addEventListener("load", () => {
  const images = [...document.images].map(image => image.complete ? image.naturalWidth : 0);
  const paper = getComputedStyle(document.body).backgroundColor;
  const wide = document.documentElement.scrollWidth > innerWidth;
  const table = document.querySelector(".table"), hint = document.querySelector(".hint");
  const hidden = table.scrollWidth - table.clientWidth, hinted = getComputedStyle(hint).display != "none";
  const drawn = Math.min(...[...document.images].map(image => image.clientWidth));
  document.body.dataset.seen = JSON.stringify({images, paper, wide, hidden, hinted, drawn});
})</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(
    ("scheme", "paper", "width"),
    [("1", "rgb(255, 255, 255)", 1280), ("0", "rgb(13, 17, 23)", 1280), ("1", "rgb(255, 255, 255)", 390)],
)
def test_every_picture_is_drawn_and_nothing_is_wrong(scheme: str, paper: str, width: int, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folders = [
        write_run(tmp_path / "cifar100-resist-20261125-195908"),
        write_run(tmp_path / "cifar100-local-sgd-20261125-195908", method="local-sgd", rounds=5),
    ]
    for folder in folders:
        summary = json.loads((folder / "summary.json").read_text())
        summary |= {"parameters_global": 42_712_932, "parameters_worker": 22_500_196}
        (folder / "summary.json").write_text(json.dumps(summary))
    (folders[1] / "summary.json").unlink()  # unfinished
    runs = read_runs(folders)
    report.write(runs, "Two runs", tmp_path)
    html = (tmp_path / "report.html").read_text()
    # The page forbids scripts; the copy that is looked at allows this one.
    allowed = html.replace("style-src", "script-src 'unsafe-inline'; style-src").replace("</body>", LOOK)
    (tmp_path / "looked-at.html").write_text(allowed)
    dark = f"--blink-settings=preferredColorScheme={scheme}"
    dumped = browse(tmp_path / "looked-at.html", tmp_path, width, "--dump-dom", dark)
    found = re.search(r'data-seen="([^"]*)"', dumped.stdout)
    assert found, dumped.stdout[-2000:] + dumped.stderr
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert len(seen["images"]) == 5
    assert min(seen["images"]) > 100
    assert seen["paper"] == paper
    assert not seen["wide"]
    # All columns are seen, or it is said that there are more; and the pictures' texts are large enough to be read.
    assert seen["hinted"] or seen["hidden"] <= 0
    assert seen["hinted"] == (width < 500)
    assert seen["drawn"] > 700

    screenshot = tmp_path / "report.png"
    shown = browse(tmp_path / "report.html", tmp_path, width, f"--screenshot={screenshot}")
    assert "CONSOLE" not in dumped.stderr + shown.stderr
    assert screenshot.read_bytes().startswith(b"\x89PNG")


def browse(page: Path, home: Path, width: int, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Open a page, and return what the browser printed; its console goes to standard error."""
    assert BROWSER is not None
    quiet = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={home}/browser",
    )
    command = [BROWSER, *quiet, "--virtual-time-budget=5000", f"--window-size={width},1600", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done
