"""The report: self-contained, escaped, written from saved tables only."""

import math
import re

import pandas as pd
import pytest
from test_show import judged_row

from persona_lib import figures, report, store
from persona_lib.beyond import claims, released
from persona_lib.paper import results
from persona_lib.settings import load_profile, results_dir

HOSTILE = '<script>alert("x")</script> & "quotes"'
FACTS = {
    "parameters": {"profile": "smoke", "overrides": ["seeds=0,1", "dpo.beta=0.2"]},
    "finished": "2026-01-02T03:04:05+00:00", "longest_seconds": 61.0,
    "git": {"commit": "abcdef0123456789", "dirty": False},
    "python": "3.11.9", "versions": {"torch": "2.13.0"},
    "hardware": {"cpu": "a <fast> one", "cores": 2, "memory_gb": 4.0, "gpus": []},
}  # fmt: skip


def hand_tables():
    names = {"dataset": "everyday", "n": 40, "n_seeds": 2, "seeds": "0 1"}
    limits = {"accuracy": [0.9, 0.55], "accuracy_low": [0.8, 0.45], "accuracy_high": [1, 0.65]}
    accuracy = pd.DataFrame(names | {"split": "test", "side": ["chosen", "rejected"], **limits})
    main = [judged_row(label="gold | chosen"), judged_row(dataset="all", kind="average", label="average")]
    example = {"dataset": "everyday", "seed": 0, "id": "r0", "eval_persona": "gold-chosen"}
    example |= {"prompt": HOSTILE, "persona": HOSTILE, "plain_dpo": HOSTILE, "pt_dpo": "short\nand clear"}
    return {
        "persona_accuracy": accuracy,
        "main": pd.concat(main).assign(dpq=11.5, dpq_low=[-8.5, 10.5], dpq_high=[31.5, 12.5]),
        "paper": released.reanalysed(),
        "examples": pd.DataFrame([example]),
    }


@pytest.fixture(scope="module")
def filled(results_shared):
    """A profile with saved tables, figures, provenance, one executed notebook and its report; made once."""
    profile = load_profile("smoke")
    for name, table in hand_tables().items():
        results.save_table(profile, name, table)
    results.save_table(profile, "primary", claims.primary_results(profile))
    figures.save_figures(profile, ["main", "persona_accuracy"])
    ran = {"settings": {"seeds": [0, 1]}, "tasks": {"12_results": FACTS}}
    store.write_json(results_dir(profile) / "provenance.json", ran)
    store.write_text(results_dir(profile) / "notebooks" / "12_results.ipynb", "{}")
    report.write_report(profile)
    return profile


def page_of(profile):
    return (results_dir(profile) / "report" / "index.html").read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere_escapes_texts_and_every_image_has_words(filled):
    text = page_of(filled)
    sources, alts = (re.findall(f'(?:{name})="([^"]*)"', text) for name in ("src|href", "alt"))
    assert sources.pop() == "../notebooks/12_results.ipynb"
    assert all(source.startswith(("data:image/svg+xml;base64,", "#")) for source in sources)
    assert len(alts) == 2 and all(len(alt) > 20 for alt in alts)
    assert not re.search(r"https?://|@import|url\(", text)
    assert """content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">""" in text
    assert all(f'id="{source[1:]}"' in text for source in sources if source[0] == "#")
    assert 'name="viewport"' in text and "prefers-color-scheme: dark" in text
    assert "<script" not in text and "a <fast> one" not in text
    assert text.count("&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt; &amp;") == 3


def test_the_page_says_findings_aims_numbers_and_provenance(filled):
    broken = page_of(filled)
    assert "+11.5\N{NO-BREAK SPACE}[+10.5,\N{NO-BREAK SPACE}+12.5]" in broken, "a number stays on its line"
    text = broken.replace("\N{NO-BREAK SPACE}", " ")
    assert "a judge matches 0.90 [0.80, 1.00] of 40 personas of chosen responses" in text
    assert "not clearly different from 0.5 (chance)." in text
    assert "(dPQ): +11.5 [+10.5, +12.5]; above 0 (no difference)." in text
    assert text.count("paper: BeaverTails, chosen, gold") > 0 and "tables/paper.csv" not in text
    assert report.summary(filled)[-1] == "aims: 1 of 2 that were set beforehand are met"
    assert "25.0 / 37.5 / 25.0 / 12.5" in text and "paper&#39;s own numbers" in text
    assert '<td class="yes">yes</td>' in text and "not run" in text  # persona accuracy .90 is met
    assert "Notebooks that ran" in text
    assert "abcdef012345" in text and "--set seeds=0,1 --set dpo.beta=0.2" in text


def test_findings_that_are_undefined_are_named_once_and_none_reads_undefined(results_here):
    gaps = {"dpq": [math.nan, 1.0], "dpq_low": [math.nan, -2.0], "dpq_high": [math.nan, 3.0]}
    table = pd.DataFrame({"dataset": "everyday", "personas": ["gold", "user"], "n": 8, **gaps})
    results.save_table(load_profile("smoke"), "side_difference", table)
    said, lacking = report.findings(load_profile("smoke"))
    assert "(user): +1.0" in said and lacking == "Too few decided pairs for: rejected minus chosen (gold)."
