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
  document.body.dataset.seen = JSON.stringify({images, paper, wide});
})</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
@pytest.mark.parametrize(("scheme", "paper"), [("1", "rgb(255, 255, 255)"), ("0", "rgb(13, 17, 23)")])
def test_every_picture_is_drawn_and_nothing_is_wrong(scheme: str, paper: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    runs = read_runs([write_run(tmp_path / "ours"), write_run(tmp_path / "theirs", method="local-sgd", rounds=5)])
    report.write(runs, "Two runs", tmp_path)
    html = (tmp_path / "report.html").read_text()
    # The page forbids scripts; the copy that is looked at allows this one.
    allowed = html.replace("style-src", "script-src 'unsafe-inline'; style-src").replace("</body>", LOOK)
    (tmp_path / "looked-at.html").write_text(allowed)
    dumped = browse(
        tmp_path / "looked-at.html", tmp_path, "--dump-dom", f"--blink-settings=preferredColorScheme={scheme}"
    )
    found = re.search(r'data-seen="([^"]*)"', dumped.stdout)
    assert found, dumped.stdout[-2000:] + dumped.stderr
    seen = json.loads(found[1].replace("&quot;", '"'))
    assert len(seen["images"]) == 5
    assert min(seen["images"]) > 100
    assert seen["paper"] == paper
    assert not seen["wide"]

    screenshot = tmp_path / "report.png"
    shown = browse(tmp_path / "report.html", tmp_path, f"--screenshot={screenshot}")
    assert "CONSOLE" not in dumped.stderr + shown.stderr
    assert screenshot.read_bytes().startswith(b"\x89PNG")


def browse(page: Path, home: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    """Open a page, and return what the browser printed; its console goes to standard error."""
    assert BROWSER is not None
    quiet = (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={home}/browser",
    )
    command = [BROWSER, *quiet, "--virtual-time-budget=5000", "--window-size=1280,1600", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done
