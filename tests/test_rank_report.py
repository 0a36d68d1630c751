"""The report in a real browser: no console message, nothing loaded, readable at desktop and phone width, a table that sorts."""

import re
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pytest

from robopolicy.ranking.rank import rank
from robopolicy.ranking.report import write_report
from robopolicy.ranking.slices import weakest
from robopolicy.ranking.worlds import drawn_parameters

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
PROBE = """<script>
addEventListener("load", () => {
  const table = document.getElementById("ranking");
  const names = () => [...table.rows].slice(1).map((row) => row.cells[1].firstChild.textContent.trim());
  const before = names();
  const shown = () => [...table.rows].filter((row) => row.offsetParent !== null).length - 1;
  const folded = shown();
  document.getElementById("more").click();
  const unfolded = shown();
  table.tHead.rows[0].cells[4].firstElementChild.click();
  const rates = [...table.rows].slice(1).map((row) => Number(row.cells[4].dataset.v));
  const sorted = rates.every((rate, i) => i === 0 || rates[i - 1] <= rate);
  const page = document.documentElement;
  const wide = page.scrollWidth > page.clientWidth;
  document.title = JSON.stringify({ before, folded, unfolded, sorted, wide });
});
</script>"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser: install chromium to look at the report in one")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    rng, rows = np.random.default_rng(0), []
    mass, rates = rng.uniform(0.1, 0.9, 40), np.linspace(0.9, 0.1, 30)
    for p, rate in enumerate(rates):
        for c in range(40):
            row = {"checkpoint": f"run{p // 5}@{1000 * (1 + p % 5)}", "run": f"run{p // 5}", "step": 1000 * (1 + p % 5)}
            row |= {"suite": "s", "split": "select", "condition": str(c), "seed": c, "success": bool(rng.uniform() < rate)}
            rows.append({**row, "return": 0.0, "progress": 0.5, "randomization.mass": float(mass[c])})
    table = pa.Table.from_pylist(rows)
    fit = rng.normal(size=(300, 6))
    names = sorted(set(table["checkpoint"].to_pylist()))
    features = {n: {"fit": fit[:200], "calibration": fit[200:], "target": fit[:60] + 0.1 * i} for i, n in enumerate(names)}
    ranking = rank(table, features, num_bootstrap=100)
    finding = {"rule": "success >= 0.5", "verdict": "passed", "why": "0.9", "value": 0.9, "interval": [0.8, 1.0], "n": 40}
    context = {
        "worlds": drawn_parameters(table),
        "slices": {"checkpoints": names[:3], "parameters": weakest(table, names[:3])},
        "galleries": [{"title": "G", "images": [("a: robopolicy rank replay out=x", np.zeros((4, 40, 40, 3), np.uint8))]}],
        "gate": {"verdict": "passed", "checkpoint": names[0], "splits": ["select"], "findings": [finding]},
        "rounds": [{"round": 1, "policies": 30, "conditions": 5, "dropped": names[:20], "why": "halved"}],
    }
    return write_report(tmp_path_factory.mktemp("page") / "report.html", ranking, context)


def browse(page, width):
    """(console messages, title of the page after its scripts)."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"]
    command = [BROWSER, *options, f"--window-size={width},900", "--virtual-time-budget=3000", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return console, re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]


@pytest.mark.parametrize("width", [1280, 500])  # headless Chromium's narrowest window is 500 px; see the phone frame below
def test_the_page_has_no_console_message_and_fits(page, width, tmp_path):
    console, title = browse(page, width)
    assert console == []
    assert title == "Checkpoint ranking"


def test_the_table_sorts_unfolds_and_fits_a_phone(page, tmp_path):
    text = page.read_text()
    probed = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", text).replace("</body>", PROBE + "</body>")
    (tmp_path / "probed.html").write_text(probed)
    found = {}
    for width in (1280, 390):
        frame = (
            f'<iframe id="f" style="width:{width}px;height:800px;border:0" src="probed.html"></iframe>'
            '<script>document.getElementById("f").onload = () => setTimeout(() => {'
            ' document.title = document.getElementById("f").contentDocument.title }, 500)</script>'
        )
        (tmp_path / "frame.html").write_text(f"<!doctype html><title>none</title>{frame}")
        command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,900"]
        options = ["--allow-file-access-from-files", "--virtual-time-budget=5000", "--dump-dom"]
        address = (tmp_path / "frame.html").as_uri()
        done = subprocess.run([*command, *options, address], capture_output=True, text=True, timeout=120, check=True)
        found[width] = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    for title in found.values():
        assert '"folded":25' in title
        assert '"unfolded":30' in title
        assert '"sorted":true' in title
        assert '"wide":false' in title, "the page is wider than the screen"
