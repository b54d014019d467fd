"""The authors' released generations (21 files): found or downloaded, read, aligned with the test split.

Their measures are in ``released_tables``. The files have no licence, so they are read from a path or
downloaded from their pinned public home, never copied into this repository. Arms are named as in
``records.RunSpec``: "dpo-chosen" is PT-DPO, "dpo-none" plain DPO (DPO+P when it is shown a persona).
"""

from __future__ import annotations

import dataclasses
import os
import sys
import textwrap
import urllib.parse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.beyond.claims import paper_rows
from persona_lib.data.official import DATASETS, ROLE_MARK, fetch, find_data_dir, load_official
from persona_lib.data.preference import draw
from persona_lib.intervals import (
    Interval,
    WinRate,
    bootstrap_mean,
    delta_pq_of,
    interval_columns,
    make_pool,
    net_columns,
    net_of,
)
from persona_lib.models.generate import cut_at_stop
from persona_lib.paper.judges import RUBRICS, model_judge
from persona_lib.paper.judging import RUBRIC_NAMES as SHORT
from persona_lib.paper.judging import agreement_row, judge_comparisons, judge_key
from persona_lib.paper.results import Row, inconsistent, verdict_counts
from persona_lib.paper.swap import flip_and_did, length_steering, length_steering_interval
from persona_lib.prompts import STOP
from persona_lib.records import DataError, PairwiseComparison, TailoringRow
from persona_lib.settings import FACTS, REPO, Profile, Run, results_dir, results_root
from persona_lib.store import VERSIONS, content_hash, file_hash, iter_rows, read_json, write_json, write_text
from persona_lib.texts import count_degenerate, n_words

if TYPE_CHECKING:
    import pandas as pd


# --- The authors' released generations ---
# Their measures are in ``released_tables``. The files have no licence, so they are read from a path or
# downloaded from their pinned public home, never copied into this repository. Arms are named as in
# ``records.RunSpec``: "dpo-chosen" is PT-DPO, "dpo-none" plain DPO (DPO+P when it is shown a persona).


COMMIT = "e9e56e17379434e459dfa32718ebd996d1a066a6"
HOME = (
    f"https://raw.githubusercontent.com/Pinafore/alignment-personalization/{COMMIT}"
    "/persona_tailoring/results/paper_outputs"
)
EOS = "<|end_of_text|>"
SOURCES = ("gold", "retrieved")
SIDED = tuple(f"{source}-{side}" for source in SOURCES for side in ("chosen", "rejected"))
# Which files were released: of Mnemonic, the baseline with personas is missing.
RELEASED = {
    "beavertails": {"none": ("none", *SIDED), "chosen": SIDED},
    "hhh": {"none": ("none", *SIDED), "chosen": SIDED},
    "mnemonic": {"none": ("none",), "chosen": ("retrieved-chosen", "retrieved-rejected")},
}


@dataclass(frozen=True)
class ReleasedFile:
    """One released file: the outputs of one DPO policy under one persona on one test split."""

    dataset: str
    train_persona: str
    eval_persona: str

    @property
    def arm(self) -> str:
        """Name of the policy as in ``RunSpec.arm``."""
        return f"dpo-{self.train_persona}"

    @property
    def path(self) -> str:
        """Where the file lies below the folder of released outputs; the authors' name for it."""
        persona = self.eval_persona.replace("retrieved", "retr")
        return (
            f"{DATASETS[self.dataset]['title']}/"
            f"dpo_Persona(training_type={self.train_persona}, inference_type={persona}).jsonl"
        )


FILES = tuple(
    ReleasedFile(dataset, train_persona, eval_persona)
    for dataset, arms in RELEASED.items()
    for train_persona, eval_personas in arms.items()
    for eval_persona in eval_personas
)


@dataclass(frozen=True)
class ReleasedOutput:
    """One output: ``text`` without the end-of-text mark, ``ended`` if the mark was its end."""

    id: str
    prompt: str
    text: str
    ended: bool


@dataclass(frozen=True)
class Released:
    """The released files that are at hand, read and aligned with the test rows of their data sets."""

    folder: Path
    outputs: dict[ReleasedFile, list[ReleasedOutput]]
    rows: dict[str, list[TailoringRow]]

    def texts(self, dataset: str, arm: str, eval_persona: str) -> list[str] | None:
        """Return the outputs of one file in test order, None if the file is not there."""
        outputs = self.outputs.get(ReleasedFile(dataset, arm.removeprefix("dpo-"), eval_persona))
        return None if outputs is None else [output.text for output in outputs]


# --- where the files are ---


def download_dir() -> Path:
    """Folder of downloaded released outputs: ``results/downloads/released_outputs``."""
    return results_root() / "downloads" / "released_outputs"


def ways_out() -> str:
    """Say the three ways to provide the released outputs."""
    return (
        "Three ways: (1) --set data_dir=PATH or PERSONA_DATA=PATH, where the folder released_outputs lies in "
        "PATH or beside it and holds BeaverTails/dpo_Persona(...).jsonl; (2) put it at "
        "../shared/data/released_outputs beside the repository; (3) with a network, run "
        f"python -m persona_lib.beyond.released, which downloads the files of {HOME}"
    )


def candidates(data_dir: str | Path) -> Iterator[Path]:
    """Yield the folders in which the released outputs may lie, the most explicit first."""
    for place in (data_dir, os.environ.get("PERSONA_DATA", "")):
        if place:
            path = Path(place).expanduser().resolve()
            yield from (path, path / "released_outputs", path.parent / "released_outputs")
    yield REPO.parent / "shared" / "data" / "released_outputs"
    yield download_dir()


def files_in(folder: Path) -> list[ReleasedFile]:
    """Return which of the 21 files a folder holds."""
    return [file for file in FILES if (folder / file.path).exists()]


def find_released(data_dir: str | Path = "") -> Path | None:
    """Return the first folder with released outputs, or None if there is none (see ``ways_out``)."""
    return next((folder for folder in candidates(data_dir) if files_in(folder)), None)


def checksums() -> dict[str, str]:
    """Return the SHA-256 of the released files that were checked (BeaverTails), by relative path."""
    return read_json(FACTS / "released_checksums.json")


def download_released(
    files: Sequence[ReleasedFile] = FILES, target: Path | None = None, home: str = HOME
) -> Path:
    """Download released files from the pinned commit and return their folder; existing ones are kept.

    A file without a checksum in our table is recorded in ``<target>/checksums.json`` on first use and
    compared with that afterwards. Raises DataError if a file cannot be fetched or differs.
    """
    target = target or download_dir()
    for file in files:
        if not (target / file.path).exists():
            url = f"{home}/{urllib.parse.quote(file.path)}"
            try:
                fetch(url, target / file.path, checksums().get(file.path))
            except DataError as error:
                raise DataError(f"{url}: not fetched or not the released file. {ways_out()}") from error
            record_checksum(target, file)
    return target


def recorded_checksums(folder: Path) -> dict[str, str]:
    """Return what ``download_released`` recorded in a folder."""
    path = folder / "checksums.json"
    return read_json(path) if path.exists() else {}


def record_checksum(folder: Path, file: ReleasedFile) -> None:
    """Write down a downloaded file's SHA-256."""
    known = recorded_checksums(folder) | {file.path: file_hash(folder / file.path)}
    write_json(folder / "checksums.json", known)


# --- how they are read ---


def load_outputs(folder: Path, file: ReleasedFile) -> list[ReleasedOutput]:
    """Read one file: a JSON list of {prompt, response}, whatever its extension says.

    Raises DataError if it is absent, differs from its known checksum or has another shape.
    """
    path = folder / file.path
    if not path.exists():
        raise DataError(f"{path}: not there. {ways_out()}")
    known = (recorded_checksums(folder) | checksums()).get(file.path)
    if known and file_hash(path) != known:
        raise DataError(f"{path}: SHA-256 is not {known[:16]}...: not the released file; fetch it again")
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path}: should be one JSON list, not {type(items).__name__}")
    return [to_output(path, file, number, item) for number, item in enumerate(items)]


def to_output(path: Path, file: ReleasedFile, number: int, item: dict) -> ReleasedOutput:
    """Turn one item into a record; the id is the test row's."""
    for key in ("prompt", "response"):
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            raise DataError(f"{path}, item {number}: no text {key!r}; items are {{prompt, response}}")
    response = item["response"]
    id = f"{file.dataset}-test-{number:04d}"
    return ReleasedOutput(id, item["prompt"], response.replace(EOS, ""), response.endswith(EOS))


def check_aligned(file: ReleasedFile, outputs: list[ReleasedOutput], rows: list[TailoringRow]) -> None:
    """Check that output i answers test row i under the file's persona; DataError names the first failure.

    The baseline gets "The user is" as "I am", so the persona is looked up from the words after that.
    """
    if len(outputs) != len(rows):
        raise DataError(f"{file.path}: {len(outputs)} outputs for {len(rows)} test rows; fetch both again")
    for output, row in zip(outputs, rows, strict=True):
        persona = (row.personas.get(file.eval_persona) or "").removeprefix("The user is").strip()
        prompt = ROLE_MARK.sub("", row.prompt)
        if output.id != row.id or prompt not in output.prompt or persona not in output.prompt:
            raise DataError(f"{file.path}, {output.id}: not the prompt and persona of {row.id}; fetch again")


def open_released(data_dir: str | Path = "") -> Released:
    """Read every released file at hand and the test rows it belongs to.

    Raises DataError, with the ways to provide them, if the files or the official data are absent.
    """
    folder = find_released(data_dir)
    if folder is None:
        raise DataError(f"the authors' released outputs are not here. {ways_out()}")
    outputs = {file: load_outputs(folder, file) for file in files_in(folder)}
    names = sorted({file.dataset for file in outputs})
    official = find_data_dir(data_dir, names)
    rows = {name: load_official(official, name)["test"] for name in names}
    for file, texts in outputs.items():
        check_aligned(file, texts, rows[file.dataset])
    return Released(folder, outputs, rows)


def open_if_present(data_dir: str | Path = "") -> tuple[Released | None, str]:
    """Open the released outputs, or return None and what is missing: the notebook's first step."""
    try:
        data = open_released(data_dir)
    except DataError as error:
        return None, str(error)
    return data, f"{len(data.outputs)} of {len(FILES)} released files, aligned with the test split row by row"


def main() -> None:
    """Download all 21 files to the folder given as argument, or to ``results/downloads``."""
    target = download_released(target=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"{len(files_in(target))} of {len(FILES)} released files in {target}")


if __name__ == "__main__":
    main()


# --- Tables and the figure of the authors' released generations ---
# The definitions are those of ``text_metrics``; "DPO+P" is plain DPO given the persona in the question.


ARMS = {"dpo-chosen": "PT-DPO", "dpo-none": "DPO+P"}


def counts_table(data: Released) -> pd.DataFrame:
    """Count rows and degenerate outputs per file, with lengths in words (one row per file)."""
    import pandas as pd

    records = []
    for file, outputs in data.outputs.items():
        texts = [output.text for output in outputs]
        words = pd.Series([n_words(text) for text in texts])
        counts = dataclasses.asdict(count_degenerate(texts, [output.ended for output in outputs]))
        records.append(
            {"dataset": file.dataset, "arm": file.arm, "eval_persona": file.eval_persona, **counts,
             "words_median": words.median(), "words_mean": words.mean()}
        )  # fmt: skip
    return pd.DataFrame(records)


def kept_table(data: Released) -> pd.DataFrame:
    """Count the pairs (PT-DPO, DPO+P under the same persona) that survive a filter on both sides.

    ``only_*_endless`` counts pairs in which only that side never stops; ``length_ratio`` is DPO+P / PT.
    """
    import pandas as pd

    records = []
    for file, tested in data.outputs.items():
        base = data.outputs.get(ReleasedFile(file.dataset, "none", file.eval_persona))
        if file.arm != "dpo-chosen" or base is None:
            continue
        counts = [[count_degenerate([o.text], [o.ended]) for o in side] for side in (tested, base)]
        pairs = list(zip(*counts, strict=True))
        words = [sum(n_words(o.text) for o in side) for side in (tested, base)]
        records.append({
            "dataset": file.dataset, "eval_persona": file.eval_persona, "n": len(pairs),
            "kept_eos": sum(not (t.no_eos or b.no_eos) for t, b in pairs),
            "kept_rep4_50": sum(not (t.rep4_over_50 or b.rep4_over_50) for t, b in pairs),
            "kept_rep4_20": sum(not (t.rep4_over_20 or b.rep4_over_20) for t, b in pairs),
            "only_pt_endless": sum(t.no_eos > b.no_eos for t, b in pairs),
            "only_dpo_endless": sum(b.no_eos > t.no_eos for t, b in pairs),
            "length_ratio": words[1] / words[0],
        })  # fmt: skip
    return pd.DataFrame(records)


def both_sides(data: Released) -> Iterator[tuple[dict[str, str], list[TailoringRow], list[str], list[str]]]:
    """Yield (names, rows, outputs under P_C, under P_R) wherever both files and responses are there."""
    for dataset, rows in data.rows.items():
        if not all(row.chosen and row.rejected for row in rows):
            continue  # Mnemonic's test split has no responses to compare with
        for source in SOURCES:
            for arm in ARMS:
                sides = [data.texts(dataset, arm, f"{source}-{side}") for side in ("chosen", "rejected")]
                if None not in sides:
                    yield {"dataset": dataset, "personas": source, "arm": arm}, rows, *sides


def lengths_table(data: Released, n_resamples: int = 4000, seed: int = 0) -> pd.DataFrame:
    """Give mean words under P_C, P_R and of the data, and how far personas steer length (Spearman's rho)."""
    import pandas as pd

    records = []
    for names, rows, under_chosen, under_rejected in both_sides(data):
        texts = (under_chosen, under_rejected, [row.chosen for row in rows], [row.rejected for row in rows])
        words = pd.DataFrame({i: [n_words(text) for text in column] for i, column in enumerate(texts)})
        differences = (list(words[2] - words[3]), list(words[0] - words[1]))
        low, high = length_steering_interval(*differences, n_resamples, seed) or (None, None)
        means = dict(zip(("words_under_chosen", "words_under_rejected", "words_chosen", "words_rejected"),
                         words.mean(), strict=True))  # fmt: skip
        rho = Interval(length_steering(*differences), low, high, len(rows))
        records.append({**names, "n": len(rows), **means, **interval_columns("rho", rho)})
    return pd.DataFrame(records)


def flip_table(data: Released, n_resamples: int = 4000, seed: int = 0) -> pd.DataFrame:
    """Give flip, DiD and the share of DiD > 0 (exact zeros left out), with bootstrap intervals over items."""
    import pandas as pd

    records = []
    for names, rows, under_chosen, under_rejected in both_sides(data):
        chosen, rejected = [row.chosen for row in rows], [row.rejected for row in rows]
        scores = flip_and_did(under_chosen, under_rejected, chosen, rejected)
        record = {**names, "n": len(rows), "n_did_zero": int((scores.did == 0).sum())}
        for name in ("flip", "did", "did_positive"):
            interval = bootstrap_mean([getattr(scores, name)], n_resamples, seed)
            record |= interval_columns(name, interval)
        records.append(record)
    return pd.DataFrame(records)


def released_tables(data: Released, n_resamples: int = 4000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Make all tables of the released outputs, by file name (without extension)."""
    return {
        "released_counts": counts_table(data),
        "released_kept": kept_table(data),
        "released_lengths": lengths_table(data, n_resamples, seed),
        "released_flip": flip_table(data, n_resamples, seed),
    }


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as ``<folder>/<name>.csv`` and return the paths."""
    paths = []
    for name, table in tables.items():
        paths.append(folder / f"{name}.csv")
        write_text(paths[-1], table.to_csv(index=False, float_format="%.6g"))
    return paths


def example_row(data: Released, dataset: str, number: int, source: str = "gold") -> dict[str, str]:
    """Return one test row by label: prompt, and per side persona, response and both arms' outputs."""
    row = data.rows[dataset][number]
    shown = {"prompt": row.prompt}
    for side, response in (("chosen", row.chosen), ("rejected", row.rejected)):
        shown[f"{side} persona"] = row.personas.get(f"{source}-{side}") or ""
        shown[f"{side} response"] = response
        for arm, title in ARMS.items():
            texts = data.texts(dataset, arm, f"{source}-{side}")
            if texts is not None:
                shown[f"{title} under the {side} persona"] = texts[number]
    return shown


def example_text(data: Released, dataset: str = "", number: int = 0, width: int = 320) -> str:
    """Lay out ``example_row`` for reading, texts cut to ``width`` characters (default: first data set)."""
    shown = example_row(data, dataset or next(iter(data.rows)), number)
    short = {label: textwrap.shorten(text, width, placeholder=" ...") for label, text in shown.items()}
    lines = [
        textwrap.fill(f"{label.upper()}: {text}", 110, subsequent_indent="    ")
        for label, text in short.items()
    ]
    return "\n".join(lines)


# --- The authors' released answers, judged again ---
# The judge is the profile's language model (``judge_*``, and ``second_judge_*`` if there is one). Each file
# is judged into a folder of its own and resumes; the paper's row for the same files stands beside ours.


ROLES = ("judge", "second_judge")


def judges_of(profile: Profile) -> list[str]:
    """Return the judges of a profile that can read these answers: language models of their own."""
    if profile.judge != "lm" or profile.judge_model == "base":
        return []
    return [role for role in ROLES if getattr(profile, f"{role}_model") not in ("", "base")]


def what_judges(profile: Profile) -> str:
    """Say who judges the released answers, or how to have them judged."""
    names = [getattr(profile, f"{role}_model") for role in judges_of(profile)]
    if names:
        return f"judged by {' and by '.join(names)}"
    return (
        f"nobody judges them: judge={profile.judge}, judge_model={profile.judge_model}. Name a language "
        "model that is not the run's own: --set judge=lm --set judge_model=NAME (of the hub, or with "
        "judge_url of a server), and judge_format"
    )


def judgeable(data: Released) -> list[tuple[str, str]]:
    """Return the (data set, eval persona) of which both policies' files are at hand, in the paper's order."""
    tested = [file for file in data.outputs if file.train_persona == "chosen"]
    pairs = [(f.dataset, f.eval_persona) for f in tested]
    return [p for p in pairs if ReleasedFile(p[0], "none", p[1]) in data.outputs]


def released_comparisons(
    data: Released, dataset: str, eval_persona: str, limit: int = 0
) -> list[PairwiseComparison]:
    """Return the comparisons of a pair of files: PT-DPO's answer as A, that of DPO+P as B, in test order.

    Rows whose persona is none (a refusal of the annotator) are left out; at most ``limit`` rows are drawn.
    """
    tested, base = (
        {o.id: o for o in data.outputs[ReleasedFile(dataset, arm, eval_persona)]}
        for arm in ("chosen", "none")
    )
    found = []
    for row in draw(data.rows[dataset], limit):
        if persona := row.personas.get(eval_persona):
            texts = (cut_at_stop(side[row.id].text, (STOP,))[0] for side in (tested, base))
            found.append(PairwiseComparison(row.id, row.prompt, persona, *texts))
    return found


def folder_of(profile: Profile, role: str, dataset: str, eval_persona: str) -> Path:
    """Folder of one judge's judgments of one pair of files."""
    return results_dir(profile) / "released_judgments" / role / dataset / eval_persona


def judge_released(run: Run, data: Released | None) -> list[Path]:
    """Let every judge of the profile judge every pair of files; returns the folders, none without data."""
    folders: list[Path] = []
    for role in judges_of(run.profile) if data else ():
        judge = model_judge(run, role)
        for dataset, eval_persona in judgeable(data):
            found = released_comparisons(data, dataset, eval_persona, run.profile.eval_limit)
            what = {
                "dataset": dataset,
                "eval_persona": eval_persona,
                "test": "dpo-chosen",
                "base": "dpo-none",
            }
            key = content_hash(VERSIONS["rejudged"], judge_key(run, role), found)
            folder = folder_of(run.profile, role, dataset, eval_persona)
            folders.append(judge_comparisons(judge, lambda found=found: found, folder, key, what))
            print(f"{role}, {dataset}, {eval_persona}: {len(found)} pairs of answers judged", flush=True)
    return folders


# --- tables ---


def rejudged_row(profile: Profile, role: str, dataset: str, eval_persona: str) -> Row:
    """Return counts, net win rates and dPQ of one judge on one pair of files, with 95 % intervals."""
    folder = folder_of(profile, role, dataset, eval_persona)
    verdicts = list(iter_rows(folder / "verdicts.jsonl"))
    source, side = eval_persona.split("-")
    judges = ", ".join(read_json(folder / "done.json")["judge"])
    line: Row = {"dataset": DATASETS[dataset]["title"], "label": f"{side}, {source}", "kind": "judged again",
                 "judge": judges, "n": len(verdicts)}  # fmt: skip
    columns: dict[str, Any] = {}
    for short, rubric in SHORT.items():
        by_id = {row["id"]: row[rubric] for row in verdicts}
        line |= verdict_counts(short, WinRate.from_verdicts(by_id.values()))
        line[f"{short}_inconsistent"] = inconsistent(folder / f"{rubric}.jsonl")
        columns |= net_columns(short, [by_id])
    pool = make_pool(columns, profile.bootstrap_samples)
    for name, statistic in (("p_net", net_of("p")), ("q_net", net_of("q")), ("dpq", delta_pq_of("p", "q"))):
        line |= interval_columns(name, pool.interval(statistic, len(verdicts)))
    return line


def rejudged_table(profile: Profile, data: Released) -> pd.DataFrame:
    """Return each pair of files as our judges see it and as the paper printed it, one under the other."""
    import pandas as pd

    paper = paper_rows(profile).assign(judge="the paper (Prometheus-2 7B, sampled)")
    rows: list[Row] = []
    for dataset, eval_persona in judgeable(data):
        ours = [rejudged_row(profile, role, dataset, eval_persona) for role in judges_of(profile)]
        theirs = paper[(paper.dataset == ours[0]["dataset"]) & (paper.label == ours[0]["label"])]
        rows += [*ours, *theirs.to_dict("records")]
    return pd.DataFrame(rows)


def agreement_on_released(profile: Profile, data: Released) -> pd.DataFrame:
    """Return how far two judges agree on the released answers, a line per data set and rubric."""
    import pandas as pd

    lines = []
    for dataset in dict.fromkeys(dataset for dataset, _ in judgeable(data)):
        personas = [persona for name, persona in judgeable(data) if name == dataset]
        for rubric in RUBRICS:
            triples, names = [], {}
            for persona in personas:
                folders = [folder_of(profile, role, dataset, persona) for role in ROLES]
                first, second = (
                    {r["id"]: r[rubric] for r in iter_rows(f / "verdicts.jsonl")} for f in folders
                )
                triples += [(i, first[i], second[i]) for i in first if i in second]
                judges = [", ".join(read_json(f / "done.json")["judge"]) for f in folders]
                names = dict(zip(("first", "second"), judges, strict=True))
            row = agreement_row([triples], profile.bootstrap_samples)
            lines.append({"dataset": dataset, "rubric": rubric, **names, **row})
    return pd.DataFrame(lines)


def rejudged_tables(run: Run, data: Released | None) -> dict[str, pd.DataFrame]:
    """Return the tables of what was judged again by file name; none without data or a judge."""
    if data is None or not judges_of(run.profile) or not judgeable(data):
        return {}
    tables = {"released_judged": rejudged_table(run.profile, data)}
    if len(judges_of(run.profile)) == 2:
        tables["released_agreement"] = agreement_on_released(run.profile, data)
    return tables
