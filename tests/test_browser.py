"""In a real browser: every notebook in JupyterLab, the report at two widths, the demo answering.

Slow, and only where Chromium and playwright are; ``python tests/browser.py`` does the first by hand.
"""

from __future__ import annotations

from pathlib import Path

import browser
import pytest

from persona_lib import demo, settings
from persona_lib.demo import Asker
from persona_lib.report import write_report

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Every notebook, run in JupyterLab with the smallest profile; (folder, what was wrong and seen)."""
    folder = tmp_path_factory.mktemp("lab")
    found = browser.run_notebooks(folder / "screenshots", [], folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PERSONA_RESULTS", str(folder / "results"))
        patch.setenv("PERSONA_FIGURES", str(folder / "figures"))
        yield folder, found


def test_every_notebook_runs_in_jupyterlab_without_an_error_or_a_request_elsewhere(ran):
    folder, found = ran
    assert len(found) == len(list((settings.REPO / "notebooks").glob("*.ipynb")))
    assert {name: facts for name, facts in found.items() if any(facts.values())} == {}
    assert {path.stem for path in (folder / "screenshots").glob("*.png")} >= {
        Path(name).stem for name in found
    }


@pytest.mark.parametrize("width", [1300, 390])
def test_the_report_fits_the_screen_and_loads_nothing(ran, width):
    index = write_report(settings.load_profile("smoke"))
    with browser.browser_page(width) as (page, seen):
        page.goto(index.as_uri())
        page.screenshot(path=ran[0] / "screenshots" / f"report-{width}.png", full_page=True)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("[...document.images].every(i => i.naturalWidth && i.alt)")
        assert (seen.errors, seen.elsewhere) == ([], [])


def test_the_demo_answers_streams_escapes_and_says_what_is_wrong(ran):
    gradio = pytest.importorskip("gradio", reason="the [demo] extra is not installed")

    url = demo.launch(Asker(settings.open_run("smoke")), browser.free_port(), block=False)
    try:
        with browser.browser_page() as (page, seen):
            page.goto(url)
            page.locator("#persona textarea").fill("<img src=x onerror=alert(1)> likes lists")
            page.locator("#ask").click()
            page.locator("#swap").get_by_text("tailored DPO").wait_for()
            assert all(page.locator(f"#{side}-answer textarea").input_value() for side in ("left", "right"))
            page.screenshot(path=ran[0] / "screenshots" / "demo.png", full_page=True)
            assert page.locator("img[src=x]").count() == 0
            page.locator("#persona textarea").fill("long " * 500)
            page.locator("#ask").click()
            page.get_by_text("have up to 2000 characters").first.wait_for()
            assert (seen.errors, seen.elsewhere) == ([], [])
    finally:
        gradio.close_all()
