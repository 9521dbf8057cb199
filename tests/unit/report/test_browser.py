"""The page in a real browser: its figures are there, nothing is fetched, nothing complains, nothing sticks out."""

import os
import re
import shutil
import subprocess

import pytest

from rtrain.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PROBE = """
<script>
addEventListener("load", () => {
  const shown = (e) => e.getBoundingClientRect().width > 0 && e.getBoundingClientRect().height > 0;
  const out = [...document.querySelectorAll("main *")].filter(
    (e) => !e.closest(".scroll, svg, .bar, details") && e.getBoundingClientRect().right > innerWidth + 1);
  const told = {
    figures: [...document.querySelectorAll("figure")].filter(shown).length,
    curves: [...document.querySelectorAll("figure > svg")].filter(shown).length,
    resources: performance.getEntriesByType("resource").length,
    wide: document.documentElement.scrollWidth > innerWidth || out.length > 0,
    ink: getComputedStyle(document.querySelector("figure svg path[style*=stroke]")).stroke,
  };
  // The values of the best step, on pointing at it.
  const figure = [...document.querySelectorAll("figure > svg")].find((e) => e.ariaLabel.startsWith("Validation AUC"));
  const [x, y] = JSON.parse(figure.dataset.readings)[0].points.find((p) => p[2] === "600");
  const at = new DOMPoint(x, y).matrixTransform(figure.getScreenCTM());
  figure.dispatchEvent(new PointerEvent("pointermove", {clientX: at.x, clientY: at.y}));
  told.read = figure.parentElement.querySelector("output").textContent;
  const dot = figure.querySelector(".dot").getBoundingClientRect();
  // matplotlib draws the dot of the best step as a path of its own, in the accent's colour.
  const best = [...figure.querySelectorAll("use")].find((e) => e.getAttribute("style").includes("--c2"))
    .getBoundingClientRect();
  told.off = Math.round(Math.hypot(dot.x + dot.width / 2 - best.x - best.width / 2,
                                   dot.y + dot.height / 2 - best.y - best.height / 2));
  figure.dispatchEvent(new PointerEvent("pointerleave"));
  told.after = figure.parentElement.querySelector("output").textContent;
  document.querySelector(".copy button").click();
  told.copied = getSelection().toString().startsWith("python recipes/dlrm_movielens.py train");
  document.body.setAttribute("data-probe", JSON.stringify(told));
});
</script>
"""


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("no Chromium: install it (apt-get install chromium); under CI this test must run")
    if found is None:
        pytest.skip("no Chromium on this machine (apt-get install chromium)")
    return found


def visit(browser, page, profile, *options):
    """The page's DOM after its scripts ran, and what the browser logged."""
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--enable-logging=stderr", *options, "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width,scheme", [(1280, 1), (500, 0)])
def test_the_page_works(browser, made, tmp_path, width, scheme):
    write_report(str(made.path))
    html = (made.path / "report.html").read_text()
    probed = tmp_path / "probed.html"
    probed.write_text(html.replace("</body>", PROBE + "</body>"))
    options = (f"--window-size={width},900", f"--blink-settings=preferredColorScheme={scheme}")
    dom, complaints = visit(browser, probed, tmp_path / "profile", *options)
    assert complaints == []
    told = re.search(r'data-probe="([^"]*)"', dom)
    assert told, "the page's scripts did not run to their end"
    probe = told[1].replace("&quot;", '"')
    assert '"figures":13,"curves":10,"resources":0,"wide":false' in probe, probe
    assert '"copied":true' in probe
    assert '"read":"step 600: AUC 0.7577","off":0,"after":""' in probe, probe
    assert dom.count("<figcaption>") == 10


def test_the_probe_sees_a_page_that_fetches_and_complains(browser, made, tmp_path):
    """The page's own policy refuses what it should never ask for, and the browser's complaint is seen here."""
    write_report(str(made.path))
    html = (made.path / "report.html").read_text()
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(html.replace("</body>", '<img src="https://example.invalid/x.png"></body>'))
    _, complaints = visit(browser, spoiled, tmp_path / "profile")
    assert any("Content Security Policy" in line for line in complaints)
