"""What the authors published, analysed again: their table of DPO against PT-DPO, and 21 files of generations.

``facts/paper_table.csv`` has the only integer counts that give the table's percentages and dPQ. They do not
say how the two verdicts of one pair of answers go together, and dPQ adds both. So dPQ has two intervals: the
verdicts taken as independent, and the widest, as much agreement as the counts allow.

The files have no licence, so they are read from a path or downloaded from their pinned public home, never
copied into this repository. Arms are named as in ``records.RunSpec``: "dpo-chosen" is PT-DPO, "dpo-none"
plain DPO (DPO+P when it is shown a persona). The judge is the profile's language model; the paper's row for
the same two files stands beside ours.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from persona_lib import intervals
from persona_lib.data.official import DATASETS, ROLE_MARK, download, find_data_dir, load_official
from persona_lib.data.preference import draw
from persona_lib.intervals import drawn_columns, make_pool, scores, signs
from persona_lib.models.generate import cut_at_stop
from persona_lib.paper import judges, judging, results, swap
from persona_lib.prompts import STOP
from persona_lib.records import SIDES, DataError, PairwiseComparison, Table, TailoringRow, table_of
from persona_lib.settings import FACTS, REPO, Profile, Run, results_dir, results_root
from persona_lib.store import (
    VERSIONS,
    content_hash,
    file_hash,
    iter_rows,
    people_csv,
    read_csv,
    read_json,
    write_text,
)

HOME = (
    "https://raw.githubusercontent.com/Pinafore/alignment-personalization"
    "/e9e56e17379434e459dfa32718ebd996d1a066a6/persona_tailoring/results/paper_outputs"
)
CHECKSUMS = FACTS / "released_checksums.json"  # SHA-256 by relative path, of the files of BeaverTails
EOS = "<|end_of_text|>"
ARMS = {"dpo-chosen": "PT-DPO", "dpo-none": "DPO+P"}
SOURCES = ("gold", "retrieved")
WAYS_OUT = (
    "Three ways: (1) --set data.path=PATH or PERSONA_DATA=PATH, where the folder released_outputs lies in "
    "PATH or beside it and holds BeaverTails/dpo_Persona(...).jsonl; (2) put it at "
    "../shared/data/released_outputs beside the repository; (3) with a network, run "
    f"python -m persona_lib.beyond.released, which downloads the files of {HOME}"
)
DOWNLOADS = "downloads/released_outputs"  # below the results
N_RESAMPLES = 20_000  # enough that the limits move by about .1 from one bootstrap seed to another


class ReleasedFile(NamedTuple):
    """One released file: the outputs of one DPO policy under one persona on one test split."""

    dataset: str
    arm: str
    eval_persona: str

    @property
    def path(self) -> str:
        """Where the file lies below the folder of released outputs; the authors' name for it."""
        names = f"training_type={self.arm.removeprefix('dpo-')}, inference_type={self.eval_persona}"
        names = names.replace("retrieved", "retr")
        return f"{DATASETS[self.dataset]['title']}/dpo_Persona({names}).jsonl"


SIDED = [f"{source}-{side}" for source in SOURCES for side in SIDES]
PAIRED = [("dpo-none", "none"), *itertools.product(("dpo-none", "dpo-chosen"), SIDED)]
MNEMONIC = [("dpo-none", "none"), *itertools.product(("dpo-chosen",), SIDED[2:])]  # no baseline with personas
RELEASED = {"beavertails": PAIRED, "hhh": PAIRED, "mnemonic": MNEMONIC}
FILES = tuple(ReleasedFile(dataset, *one) for dataset, files in RELEASED.items() for one in files)


class Released(NamedTuple):
    """The released files at hand: outputs by id of the test row, in test order, and those rows."""

    outputs: dict[ReleasedFile, dict[str, str]]
    rows: dict[str, list[TailoringRow]]


def find_released(data_dir: str | Path = "") -> tuple[Path, list[ReleasedFile]]:
    """Return the first folder with released outputs, and its files; without one DataError, `WAYS_OUT`."""
    places: list[Path] = []
    for named in (name for name in (data_dir, os.environ.get("PERSONA_DATA")) if name):
        path = Path(named).expanduser().resolve()
        places += [path, path / "released_outputs", path.parent / "released_outputs"]
    for place in (*places, REPO.parent / "shared/data/released_outputs", results_root() / DOWNLOADS):
        if files := [file for file in FILES if (place / file.path).exists()]:
            return place, files
    raise DataError(f"the authors' released outputs are not here. {WAYS_OUT}")


def load_outputs(folder: Path, file: ReleasedFile, rows: list[TailoringRow]) -> dict[str, str]:
    """Read one file, a JSON list of {prompt, response}: the outputs without the end mark, by id of test row.

    Raises DataError if the file differs from its known checksum, or if output i does not answer test row i
    under the file's persona. The baseline gets "The user is" as "I am": the words after that are looked up.
    """
    path, known, outputs = folder / file.path, read_json(CHECKSUMS).get(file.path), {}
    if known and file_hash(path) != known:
        raise DataError(f"{path}: SHA-256 is not {known[:16]}...: not the released file; fetch it again")
    items = read_json(path)
    if not isinstance(items, list) or len(items) != len(rows):
        raise DataError(f"{path}: should be one JSON list with {len(rows)} outputs; fetch it again")
    for item, row in zip(items, rows, strict=True):
        asked = ROLE_MARK.sub("", row.prompt)
        persona = (row.personas.get(file.eval_persona) or "").removeprefix("The user is").strip()
        match item:
            case {"prompt": str(prompt), "response": str(text)} if asked in prompt and persona in prompt:
                outputs[row.id] = text.replace(EOS, "")
            case _:
                wanted = "{prompt, response} with this test row's prompt and persona"
                raise DataError(f"{path}, {row.id}: not a {wanted}; fetch data and outputs again")
    return outputs


def open_if_present(data_dir: str | Path = "") -> tuple[Released | None, str]:
    """Read every released file at hand and its test rows, or return None and what is missing."""
    try:
        folder, files = find_released(data_dir)
        names = sorted({file.dataset for file in files})
        official = find_data_dir(data_dir, names)
        rows = {name: load_official(official, name)["test"] for name in names}
        data = Released({file: load_outputs(folder, file, rows[file.dataset]) for file in files}, rows)
    except DataError as error:
        return None, str(error)
    return data, f"{len(files)} of {len(FILES)} released files, aligned with the test split row by row"


def released_tables(data: Released, n_resamples: int) -> dict[str, Table]:
    """Return the table ``released_flip`` by its name, a line per data set, kind of personas and policy."""
    lines = []
    for (dataset, rows), source, arm in itertools.product(data.rows.items(), SOURCES, ARMS):
        files = [ReleasedFile(dataset, arm, f"{source}-{side}") for side in SIDES]
        if not all(file in data.outputs for file in files) or not all(r.chosen and r.rejected for r in rows):
            continue
        texts = [list(data.outputs[file].values()) for file in files]
        found = swap.flip_and_did(*texts, *([getattr(row, side) for row in rows] for side in SIDES))
        line = {"dataset": dataset, "personas": source, "arm": arm, "n": len(rows)}
        columns = {name: [dict(enumerate(found[name]))] for name in ("flip", "did", "did_positive")}
        pool = make_pool(columns, n_resamples, least=lambda name: None if name == "did" else 0)
        lines.append(line | drawn_columns(pool))
    return {"released_flip": table_of(lines)}


def write_tables(tables: dict[str, Table], folder: Path) -> list[Path]:
    """Write each table as ``<folder>/<name>.csv`` and return the paths."""
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", people_csv(table, float_format="%.6g"))
    return [folder / f"{name}.csv" for name in tables]


def judged_pairs(profile: Profile, data: Released | None) -> list[tuple[str, str]]:
    """Return the (data set, eval persona) that a language model other than the base can judge; [] without."""
    if data is None or profile.evaluation.judge != "lm" or profile.judge.model == "base":
        return []
    tested = [(file.dataset, file.eval_persona) for file in data.outputs if file.arm == "dpo-chosen"]
    return [pair for pair in tested if ReleasedFile(pair[0], "dpo-none", pair[1]) in data.outputs]


def released_comparisons(data: Released, dataset: str, eval_persona: str, limit: int) -> judges.Comparisons:
    """Return the comparisons of two files, PT-DPO's answer as A, of up to ``limit`` rows with the persona."""
    files = [data.outputs[ReleasedFile(dataset, arm, eval_persona)] for arm in ARMS]
    return [
        PairwiseComparison(row.id, row.prompt, persona, *(cut_at_stop(f[row.id], (STOP,))[0] for f in files))
        for row in draw(data.rows[dataset], limit)
        if (persona := row.personas.get(eval_persona))
    ]


def folder_of(run: Run, dataset: str, eval_persona: str) -> Path:
    """Folder of the judgments of one pair of files; every judge has its own."""
    name = content_hash(judging.judge_key(run))
    return results_dir(run.profile) / "released_judgments" / name / dataset / eval_persona


def judge_released(run: Run, data: Released | None) -> list[Path]:
    """Let the judge judge every pair of files, resuming; returns the folders. Without a judge it says how."""
    if data is None or not (pairs := judged_pairs(run.profile, data)):
        print("not judged: that needs the files and a language model as judge, --set evaluation.judge=lm "
              "--set judge.model=NAME (or judge.url of a server) --set judge.format=json")  # fmt: skip
        return []
    judge, folders = judges.model_judge(run), []
    for pair in pairs:
        found = released_comparisons(data, *pair, run.profile.evaluation.limit)
        key = content_hash(VERSIONS["rejudged"], judging.judge_key(run), found)
        folders.append(judging.judge_comparisons(judge, found, folder_of(run, *pair), key))
        print(f"{', '.join(pair)}: {len(found)} pairs of answers judged", flush=True)
    return folders


def rejudged_row(run: Run, dataset: str, eval_persona: str) -> results.Row:
    """Return counts, net win rates and dPQ of the judge on one pair of files, with 95 % intervals."""
    folder, (source, side) = folder_of(run, dataset, eval_persona), eval_persona.split("-")
    verdicts, judge = list(iter_rows(folder / "verdicts.jsonl")), read_json(folder / "done.json")["judge"]
    line: results.Row = {"dataset": DATASETS[dataset]["title"], "label": f"{side}, {source}"}
    line |= {"kind": "judged again", "judge": ", ".join(judge), "n": len(verdicts)}
    columns: dict[str, Any] = {}
    for short, rubric in judging.RUBRIC_NAMES.items():
        by_id = {row["id"]: row[rubric] for row in verdicts}
        line |= results.verdict_counts(short, Counter(by_id.values()))
        line[f"{short}_inconsistent"] = results.inconsistent(folder / f"{rubric}.jsonl")
        columns[f"released/{short}"] = signs([by_id])
    pool = make_pool(columns, run.profile.evaluation.bootstrap_samples, least=lambda name: -1)
    return line | drawn_columns(scores(pool, "released"))


def rejudged_tables(run: Run, data: Released | None) -> dict[str, Table]:
    """Return the table ``released_judged``, the paper's row below each of ours; {} without data or judge."""
    paper, rows = reanalysed().assign(judge="the paper (Prometheus-2 7B, sampled)"), []
    for pair in judged_pairs(run.profile, data):
        ours = rejudged_row(run, *pair)
        theirs = paper[(paper.dataset == ours["dataset"]) & (paper.label == ours["label"])]
        rows += [ours, *theirs.to_dict("records")]
    return {"released_judged": table_of(rows)} if rows else {}


def main() -> None:
    """Download all 21 files to the folder given as argument, or to ``results/downloads``."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else results_root() / DOWNLOADS
    try:
        download([file.path for file in FILES], target, HOME, read_json(CHECKSUMS), WAYS_OUT)
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(FILES)} released files in {target}")


if __name__ == "__main__":
    main()


# --- The paper's table ---


def paper_table() -> list[dict[str, Any]]:
    """Read the paper's DPO vs PT-DPO table: ten rows of exact counts, printed percentages and dPQ."""
    return read_csv(FACTS / "paper_table.csv").to_dict("records")


def resampled_dpq(p: Sequence[int], q: Sequence[int], agree: bool, rng: np.random.Generator) -> np.ndarray:
    """Return dPQ, in points, of counts of verdicts (win, tie, loss), and then of their multinomial resamples.

    A pair's two verdicts are independent, or ``agree`` as often as the counts allow (upper Frechet bound).
    """
    joint = np.outer(p, q) / sum(p)
    if agree:
        cumulative = np.minimum.outer(np.cumsum(p), np.cumsum(q))
        joint = np.diff(np.diff(cumulative, axis=0, prepend=0), axis=1, prepend=0)
    draws = rng.multinomial(round(joint.sum()), joint.ravel() / joint.sum(), size=N_RESAMPLES)
    counts = np.concatenate([joint[None], draws.reshape(-1, 3, 3)])
    margins = [counts.sum(axis=axis) for axis in (2, 1)]
    personal, quality = (intervals.ratio(m[:, 0] - m[:, 2], m[:, 0] + m[:, 2]) for m in margins)
    return 50 * (personal + quality)


def dpq_test(p: Sequence[int], q: Sequence[int]) -> float:
    """Return the two-sided p of dPQ = 0 for independent verdicts; both rubrics need decided verdicts.

    Normal approximation: a net win rate has the variance (1 - net^2) / decided (delta method).
    """
    from scipy.stats import norm

    wins, _, losses = np.array([p, q]).T
    net = (wins - losses) / (wins + losses)
    return float(2 * norm.sf(abs(net.sum()) / np.sqrt(((1 - net**2) / (wins + losses)).sum())))


@functools.cache
def reanalysed() -> Table:
    """Return the ten rows (counts, dPQ with both intervals, our tests) and their average.

    The average takes the rows as independent. They are not: rows of a data set share prompts and, in part,
    answers. Its widest limits are the means of the rows' widest limits, as if all rows erred together.
    """
    lines, drawn = [], []
    for number, row in enumerate(paper_table()):
        line: results.Row = {"dataset": row["dataset"], "kind": "paper"}
        line |= {"label": f"{row['side']}, {row['persona']}", "n": row["n"]}
        p, q = ([row[f"{short}_{verdict}"] for verdict in judging.PARSED] for short in "pq")
        for short, counts in (("p", p), ("q", q)):
            line |= results.verdict_counts(short, dict(zip(judging.PARSED, counts, strict=True)))
            line[f"{short}_sign"] = intervals.sign_test(counts[0], counts[2])
        rng = np.random.default_rng(number)
        drawn.append(resampled_dpq(p, q, False, rng))
        widest = intervals.interval_of(resampled_dpq(p, q, True, rng))
        line |= drawn_columns({"dpq": drawn[-1]}) | {"dpq_p": dpq_test(p, q)}
        lines.append(line | {"dpq_low_widest": widest.low, "dpq_high_widest": widest.high})
    average: results.Row = {"dataset": "all", "kind": "average", "label": "average of the ten rows"}
    average |= drawn_columns({"dpq": np.mean(drawn, axis=0)})
    average |= table_of(lines)[["dpq_low_widest", "dpq_high_widest"]].mean().to_dict()
    table = results.with_holm(table_of([*lines, average]))
    return table.assign(dpq_holm=intervals.holm(table.dpq_p))
