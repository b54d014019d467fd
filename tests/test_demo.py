"""The demo, also in a real browser that reaches no other machine, and asking a run's policies."""

import random
import shutil
from urllib.parse import urlsplit

import pytest
from tiny import tiny_model, tiny_tokenizer, words

from persona_lib import demo, settings, store
from persona_lib.models.generate import TransformersGenerator
from persona_lib.settings import Run, load_profile, set_field


def test_the_streamed_answer_grows_into_the_generated_one():
    prompt = words(random.Random(1), 3, 9)
    generator = TransformersGenerator(tiny_model().eval(), tiny_tokenizer(), "tiny", 1)
    ((_, whole),) = generator.generate([prompt], 12, (), min_new_tokens=5)
    parts = list(generator.stream(prompt, 12, (), 5))
    assert parts[-1] == whole.text and len(parts) <= 12
    assert all(after.startswith(before) for before, after in zip(parts, parts[1:], strict=False))


@pytest.fixture
def echoing(results_here, monkeypatch):
    """A run whose policies are there and answer with their prompt."""
    monkeypatch.setattr(demo, "format_of", lambda *source: None)  # the paper's lines
    monkeypatch.setattr(demo.Asker, "answer", lambda self, *asked: iter(["", self.prompt(*asked)]))
    run = Run(set_field(load_profile("paper"), {"training.arms": ["none", "chosen"]}), "beavertails", 0)
    for arm in ("sft-none", "dpo-none", "sft-chosen", "dpo-chosen"):
        store.mark_done(run.folder / "adapters" / arm, "tiny")
    return run


def test_each_policy_is_told_as_it_was_trained_a_pair_that_is_none_and_a_missing_policy_are_named(echoing):
    pairs = [("How?", "The user is calm and prefers tea."), ["Why?", " "]]
    table = demo.answer_own(echoing, pairs)
    assert table.plain_dpo.tolist() == [
        "Prompt: How? I am calm and prefer tea.\nResponse:", "Prompt: Why?\nResponse:"
    ]  # fmt: skip
    assert table.pt_dpo.tolist() == [
        "Prompt: How?\nPersona: The user is calm and prefers tea.\nResponse:", "Prompt: Why?\nResponse:"
    ]  # fmt: skip
    for wrong in ("text", ["q"], ["q", 3]):
        with pytest.raises(ValueError, match="own, pair 2: .* write it as"):
            demo.answer_own(echoing, [["q", "p"], wrong])
    (echoing.folder / "adapters" / "dpo-chosen" / "done.json").unlink()
    table = demo.answer_own(echoing, pairs)
    assert table.pt_dpo[0] == "(dpo-chosen not trained)" and "How?" in table.plain_dpo[0]


def test_what_the_reader_sees_stands_with_each_answer_under_its_policys_name(echoing):
    pytest.importorskip("gradio", reason="the [demo] extra is not installed")
    asker = demo.Asker(echoing)
    played = demo.play(asker, "How?", "The user is calm.", "dpo-none", "dpo-chosen")
    *_, (first, seen, second, seen_too) = played
    assert "I am calm" in first and "Persona: The user is calm" in second
    assert seen.startswith("In the answer of plain DPO, told the persona, ") and "PT-DPO (chosen)" in seen_too
    assert "the reader rule sees length: brief, format: prose" in seen


FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM, reason="no Chromium is installed")
def test_the_demo_answers_streams_escapes_and_says_what_is_wrong(smoke_repository, monkeypatch):
    gradio = pytest.importorskip("gradio", reason="the [demo] extra is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="the [browser] extra is not installed")
    monkeypatch.setenv("PERSONA_RESULTS", str(smoke_repository / "results"))
    url, wrong = demo.launch(demo.Asker(settings.open_run("smoke")), None).local_url, []

    def answer(route):
        if urlsplit(route.request.url).hostname in ("127.0.0.1", "localhost", None, ""):
            return route.continue_()
        wrong.append(route.request.url)
        return route.abort()

    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.on("console", lambda m: wrong.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.route("**/*", answer)
        page.goto(url)
        page.locator("#question textarea").fill("How do I clean my fridge?")
        page.locator("#persona textarea").fill("<img src=x onerror=alert(1)> likes lists")
        page.get_by_role("button", name="Ask both").click()
        for side in ("first", "second"):
            box = page.locator(f"#{side}-seen")
            playwright.expect(box).to_contain_text("the reader rule sees", timeout=60_000)
        for width in (1200, 390):  # side by side, and on a phone below each other
            page.set_viewport_size({"width": width, "height": 900})
            tops = [page.locator(f"#{side}-answer").bounding_box()["y"] for side in ("first", "second")]
            assert (tops[0] == tops[1]) == (width == 1200)
        assert "dpo-" not in page.inner_text("body")
        assert page.locator("img[src=x]").count() == 0
        page.locator("#persona textarea").fill("long " * 500)
        page.get_by_role("button", name="Ask both").click()
        page.get_by_text("have up to 2000 characters").first.wait_for()
        browser.close()
    gradio.close_all()
    assert wrong == []
