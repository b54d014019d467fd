"""The authors' released generations (21 files): found or downloaded, aligned, analysed, judged again.

The files have no licence, so they are read from a path or downloaded from their pinned public home, never
copied into this repository. Arms are named as in ``records.RunSpec``: "dpo-chosen" is PT-DPO, "dpo-none"
plain DPO (DPO+P when it is shown a persona). Judges are the profile's language models; each pair of files is
judged into a folder of its own and resumes, and the paper's row for the same files stands beside ours.
"""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from persona_lib.beyond.claims import reanalysed
from persona_lib.data.official import DATASETS, ROLE_MARK, download, find_data_dir, load_official
from persona_lib.data.preference import draw
from persona_lib.intervals import (
    WinRate,
    bootstrap_mean,
    drawn_columns,
    interval_columns,
    make_pool,
    rank_correlation,
    signs,
)
from persona_lib.models.generate import cut_at_stop
from persona_lib.paper.judges import model_judge
from persona_lib.paper.judging import (
    RUBRIC_NAMES,
    RUBRICS,
    agreement_row,
    judge_comparisons,
    judge_key,
    verdict_pairs,
)
from persona_lib.paper.results import Row, inconsistent, scores, verdict_counts
from persona_lib.paper.swap import flip_and_did
from persona_lib.prompts import STOP
from persona_lib.records import SIDES, DataError, PairwiseComparison, TailoringRow
from persona_lib.settings import FACTS, REPO, Profile, Run, results_dir, results_root
from persona_lib.store import VERSIONS, content_hash, file_hash, iter_rows, read_json, write_text
from persona_lib.texts import count_degenerate

if TYPE_CHECKING:
    import pandas as pd

HOME = (
    "https://raw.githubusercontent.com/Pinafore/alignment-personalization"
    "/e9e56e17379434e459dfa32718ebd996d1a066a6/persona_tailoring/results/paper_outputs"
)
EOS = "<|end_of_text|>"
ARMS = {"dpo-chosen": "PT-DPO", "dpo-none": "DPO+P"}
SOURCES = ("gold", "retrieved")
SIDED = tuple(f"{source}-{side}" for source in SOURCES for side in SIDES)
# Which files were released: of Mnemonic, the baseline with personas is missing.
RELEASED = {
    "beavertails": {"none": ("none", *SIDED), "chosen": SIDED},
    "hhh": {"none": ("none", *SIDED), "chosen": SIDED},
    "mnemonic": {"none": ("none",), "chosen": ("retrieved-chosen", "retrieved-rejected")},
}
WAYS_OUT = (
    "Three ways: (1) --set data.path=PATH or PERSONA_DATA=PATH, where the folder released_outputs lies in "
    "PATH or beside it and holds BeaverTails/dpo_Persona(...).jsonl; (2) put it at "
    "../shared/data/released_outputs beside the repository; (3) with a network, run "
    f"python -m persona_lib.beyond.released, which downloads the files of {HOME}"
)
ROLES = ("judge", "second_judge")


# --- the files: where they are, and how they are read ---


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
        names = f"training_type={self.train_persona}, inference_type={self.eval_persona}"
        names = names.replace("retrieved", "retr")
        return f"{DATASETS[self.dataset]['title']}/dpo_Persona({names}).jsonl"


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

    outputs: dict[ReleasedFile, list[ReleasedOutput]]
    rows: dict[str, list[TailoringRow]]

    def texts(self, dataset: str, arm: str, eval_persona: str) -> list[str] | None:
        """Return the outputs of one file in test order, None if the file is not there."""
        outputs = self.outputs.get(ReleasedFile(dataset, arm.removeprefix("dpo-"), eval_persona))
        return None if outputs is None else [output.text for output in outputs]


def download_dir() -> Path:
    """Folder of downloaded released outputs: ``results/downloads/released_outputs``."""
    return results_root() / "downloads" / "released_outputs"


def files_in(folder: Path) -> list[ReleasedFile]:
    """Return which of the 21 files a folder holds."""
    return [file for file in FILES if (folder / file.path).exists()]


def find_released(data_dir: str | Path = "") -> Path | None:
    """Return the first folder with released outputs, or None if there is none (see ``WAYS_OUT``)."""
    places: list[Path] = []
    for named in filter(None, (data_dir, os.environ.get("PERSONA_DATA", ""))):
        path = Path(named).expanduser().resolve()
        places += [path, path / "released_outputs", path.parent / "released_outputs"]
    places += [REPO.parent / "shared" / "data" / "released_outputs", download_dir()]
    return next((folder for folder in places if files_in(folder)), None)


def known_checksums() -> dict[str, str]:
    """Return the SHA-256 by relative path of the files that we checked (those of BeaverTails)."""
    return read_json(FACTS / "released_checksums.json")


def download_released(
    files: Sequence[ReleasedFile] = FILES, target: Path | None = None, home: str = HOME
) -> Path:
    """Download released files from the pinned commit and return their folder; existing ones are kept."""
    names = [file.path for file in files]
    return download(names, target or download_dir(), home, known_checksums(), WAYS_OUT)


def load_outputs(folder: Path, file: ReleasedFile) -> list[ReleasedOutput]:
    """Read one file: a JSON list of {prompt, response}, whatever its extension says.

    Output i gets the id of test row i. Raises DataError if the file differs from its known checksum or has
    another shape.
    """
    path, known = folder / file.path, known_checksums().get(file.path)
    if known and file_hash(path) != known:
        raise DataError(f"{path}: SHA-256 is not {known[:16]}...: not the released file; fetch it again")
    items = read_json(path)
    if not isinstance(items, list):
        raise DataError(f"{path}: should be one JSON list, not {type(items).__name__}")
    outputs = []
    for number, item in enumerate(items):
        for key in ("prompt", "response"):
            if not isinstance(item, dict) or not isinstance(item.get(key), str):
                raise DataError(f"{path}, item {number}: no text {key!r}; items are {{prompt, response}}")
        text, name = item["response"], f"{file.dataset}-test-{number:04d}"
        outputs.append(ReleasedOutput(name, item["prompt"], text.replace(EOS, ""), text.endswith(EOS)))
    return outputs


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
        raise DataError(f"the authors' released outputs are not here. {WAYS_OUT}")
    outputs = {file: load_outputs(folder, file) for file in files_in(folder)}
    names = sorted({file.dataset for file in outputs})
    official = find_data_dir(data_dir, names)
    rows = {name: load_official(official, name)["test"] for name in names}
    for file, texts in outputs.items():
        check_aligned(file, texts, rows[file.dataset])
    return Released(outputs, rows)


def open_if_present(data_dir: str | Path = "") -> tuple[Released | None, str]:
    """Open the released outputs, or return None and what is missing: the notebook's first step."""
    try:
        data = open_released(data_dir)
    except DataError as error:
        return None, str(error)
    return data, f"{len(data.outputs)} of {len(FILES)} released files, aligned with the test split row by row"


# --- analysed without a judge ---


def counts_table(data: Released) -> pd.DataFrame:
    """Count rows and degenerate outputs per file, with lengths in words (one row per file)."""
    import pandas as pd

    records = []
    for file, outputs in data.outputs.items():
        texts = [output.text for output in outputs]
        words = pd.Series([len(text.split()) for text in texts])
        names = {"dataset": file.dataset, "arm": file.arm, "eval_persona": file.eval_persona}
        counts = count_degenerate(texts, [output.ended for output in outputs])
        records.append({**names, **counts, "words_median": words.median(), "words_mean": words.mean()})
    return pd.DataFrame(records)


def both_sides(data: Released) -> Iterator[tuple[dict[str, str], tuple[list[str], ...]]]:
    """Yield names and texts (outputs under P_C and P_R, chosen and rejected responses), where all are there.

    Mnemonic's test split has no responses to compare with.
    """
    for dataset, rows in data.rows.items():
        responses = [row.chosen for row in rows], [row.rejected for row in rows]
        for source in SOURCES if all(map(all, responses)) else ():
            for arm in ARMS:
                sides = [data.texts(dataset, arm, f"{source}-{side}") for side in SIDES]
                if None not in sides:
                    yield {"dataset": dataset, "personas": source, "arm": arm}, (*sides, *responses)


def released_tables(data: Released, n_resamples: int = 4000, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Return the tables of the released outputs by file name; intervals are bootstraps over rows.

    ``released_lengths``: mean words under P_C, under P_R and of the data, and how far personas steer length
    (Spearman's rho). ``released_flip``: flip, DiD and the share of DiD > 0 (exact zeros left out).
    """
    import pandas as pd

    lengths, flips = [], []
    for names, texts in both_sides(data):
        head = names | {"n": len(texts[0])}
        words = pd.DataFrame({i: [len(text.split()) for text in column] for i, column in enumerate(texts)})
        differences = list(words[2] - words[3]), list(words[0] - words[1])
        rho = rank_correlation(*differences, n_resamples, seed)
        columns = ("words_under_chosen", "words_under_rejected", "words_chosen", "words_rejected")
        means = dict(zip(columns, words.mean(), strict=True))
        lengths.append(head | means | interval_columns("rho", rho))
        scores = flip_and_did(*texts)
        flip = head | {"n_did_zero": int((scores["did"] == 0).sum())}
        for name in ("flip", "did", "did_positive"):
            flip |= interval_columns(name, bootstrap_mean([scores[name]], n_resamples, seed))
        flips.append(flip)
    tables = {"released_lengths": pd.DataFrame(lengths), "released_flip": pd.DataFrame(flips)}
    return {"released_counts": counts_table(data), **tables}


def write_tables(tables: dict[str, pd.DataFrame], folder: Path) -> list[Path]:
    """Write each table as ``<folder>/<name>.csv`` and return the paths."""
    paths = []
    for name, table in tables.items():
        paths.append(folder / f"{name}.csv")
        write_text(paths[-1], table.to_csv(index=False, float_format="%.6g"))
    return paths


def example_text(data: Released, number: int = 0, width: int = 320) -> str:
    """Lay out a test row of the first data set for reading, texts cut to ``width`` characters.

    Shown are the prompt, and per side the gold persona, the response and both arms' outputs.
    """
    dataset, rows = next(iter(data.rows.items()))
    row = rows[number]
    shown = {"prompt": row.prompt}
    for side in SIDES:
        shown[f"{side} persona"] = row.personas.get(f"gold-{side}") or ""
        shown[f"{side} response"] = getattr(row, side)
        for arm, title in ARMS.items():
            if texts := data.texts(dataset, arm, f"gold-{side}"):
                shown[f"{title} under the {side} persona"] = texts[number]
    lines = []
    for label, text in shown.items():
        short = textwrap.shorten(text, width, placeholder=" ...")
        lines.append(textwrap.fill(f"{label.upper()}: {short}", 110, subsequent_indent="    "))
    return "\n".join(lines)


# --- judged again ---


def judges_of(profile: Profile) -> list[str]:
    """Return the judges of a profile that can read these answers: language models of their own."""
    if profile.evaluation.judge != "lm" or profile.judge.model == "base":
        return []
    return [role for role in ROLES if getattr(profile, role).model not in ("", "base")]


def what_judges(profile: Profile) -> str:
    """Say who judges the released answers, or how to have them judged."""
    names = [getattr(profile, role).model for role in judges_of(profile)]
    if names:
        return f"judged by {' and by '.join(names)}"
    return (
        f"nobody judges them: evaluation.judge={profile.evaluation.judge}, "
        f"judge.model={profile.judge.model}. Name a "
        "language model that is not the run's own: --set evaluation.judge=lm --set judge.model=NAME (of "
        "the hub, or with judge.url of a server), and judge.format"
    )


def judgeable(data: Released) -> list[tuple[str, str]]:
    """Return the (data set, eval persona) of which both policies' files are at hand, in the paper's order."""
    tested = [(f.dataset, f.eval_persona) for f in data.outputs if f.train_persona == "chosen"]
    return [pair for pair in tested if ReleasedFile(pair[0], "none", pair[1]) in data.outputs]


def released_comparisons(
    data: Released, dataset: str, eval_persona: str, limit: int = 0
) -> list[PairwiseComparison]:
    """Return the comparisons of a pair of files: PT-DPO's answer as A, that of DPO+P as B, in test order.

    Rows whose persona is none (a refusal of the annotator) are left out; at most ``limit`` rows are drawn.
    """
    files = [data.outputs[ReleasedFile(dataset, arm, eval_persona)] for arm in ("chosen", "none")]
    tested, base = ({output.id: output.text for output in outputs} for outputs in files)
    found = []
    for row in draw(data.rows[dataset], limit):
        if persona := row.personas.get(eval_persona):
            texts = (cut_at_stop(side[row.id], (STOP,))[0] for side in (tested, base))
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
            found = released_comparisons(data, dataset, eval_persona, run.profile.evaluation.limit)
            what = {"dataset": dataset, "eval_persona": eval_persona}
            what |= {"test": "dpo-chosen", "base": "dpo-none"}
            key = content_hash(VERSIONS["rejudged"], judge_key(run, role), found)
            folder = folder_of(run.profile, role, dataset, eval_persona)
            folders.append(judge_comparisons(judge, lambda found=found: found, folder, key, what))
            print(f"{role}, {dataset}, {eval_persona}: {len(found)} pairs of answers judged", flush=True)
    return folders


def judge_of(folder: Path) -> str:
    """Return who judged into a folder."""
    return ", ".join(read_json(folder / "done.json")["judge"])


def rejudged_row(profile: Profile, role: str, dataset: str, eval_persona: str) -> Row:
    """Return counts, net win rates and dPQ of one judge on one pair of files, with 95 % intervals."""
    folder = folder_of(profile, role, dataset, eval_persona)
    verdicts = list(iter_rows(folder / "verdicts.jsonl"))
    source, side = eval_persona.split("-")
    line: Row = {"dataset": DATASETS[dataset]["title"], "label": f"{side}, {source}", "kind": "judged again",
                 "judge": judge_of(folder), "n": len(verdicts)}  # fmt: skip
    columns: dict[str, Any] = {}
    for short, rubric in RUBRIC_NAMES.items():
        by_id = {row["id"]: row[rubric] for row in verdicts}
        line |= verdict_counts(short, WinRate.from_verdicts(by_id.values()))
        line[f"{short}_inconsistent"] = inconsistent(folder / f"{rubric}.jsonl")
        columns[f"released/{short}"] = signs([by_id])
    pool = make_pool(columns, profile.evaluation.bootstrap_samples)
    return line | drawn_columns(scores(pool, "released"))


def rejudged_table(profile: Profile, data: Released) -> pd.DataFrame:
    """Return each pair of files as our judges see it and as the paper printed it, one under the other."""
    import pandas as pd

    paper = reanalysed().assign(judge="the paper (Prometheus-2 7B, sampled)")
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
        names = [name for title, name in judgeable(data) if title == dataset]
        folders = [[folder_of(profile, role, dataset, name) for role in ROLES] for name in names]
        judged = [[list(iter_rows(folder / "verdicts.jsonl")) for folder in two] for two in folders]
        first, second = map(judge_of, folders[-1])
        for rubric in RUBRICS:
            by_id = [[{row["id"]: row[rubric] for row in rows} for rows in two] for two in judged]
            triples = [triple for two in by_id for triple in verdict_pairs(*two)]
            line = {"dataset": dataset, "rubric": rubric, "first": first, "second": second}
            lines.append(line | agreement_row([triples], profile.evaluation.bootstrap_samples))
    return pd.DataFrame(lines)


def rejudged_tables(run: Run, data: Released | None) -> dict[str, pd.DataFrame]:
    """Return the tables of what was judged again by file name; none without data or a judge."""
    if data is None or not judges_of(run.profile) or not judgeable(data):
        return {}
    tables = {"released_judged": rejudged_table(run.profile, data)}
    if len(judges_of(run.profile)) == 2:
        tables["released_agreement"] = agreement_on_released(run.profile, data)
    return tables


def main() -> None:
    """Download all 21 files to the folder given as argument, or to ``results/downloads``."""
    target = download_released(target=Path(sys.argv[1]) if len(sys.argv) > 1 else None)
    print(f"{len(files_in(target))} of {len(FILES)} released files in {target}")


if __name__ == "__main__":
    main()
