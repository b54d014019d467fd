"""How often a retriever picks the training row whose personas the authors retrieved for a test prompt.

    python -m studies.retrieval_agreement DATA_DIR [bm25]
    python -m studies.retrieval_agreement DATA_DIR late colbert-ir/colbertv2.0

The authors' row is known where their retrieved personas are those of one released training row. Per data set:
test rows with such a row, the share for which the retriever's first row is that one, the share with it among
the first ten, and the median rank. Needs the authors' data, and the extra ``retrieval`` for a model.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from persona_lib.data import official, tailoring
from persona_lib.texts import POOL_SPLITS


def ranks(folder: Path, dataset: str, retriever: str, model: str) -> list[int]:
    """Return, per test row, how many pool rows the retriever puts before the authors' row, plus one."""
    rows = official.load_official(folder, dataset)
    pool = [row for split in POOL_SPLITS for row in rows[split]]
    place = {row.id: number for number, row in enumerate(pool)}
    queries = [(row.prompt, row.retrieved_id) for row in rows["test"] if row.retrieved_id in place]
    texts = [text for text, _ in queries], [row.prompt for row in pool]
    scores = list(tailoring.SCORERS[retriever](*texts, model))
    found = [line[place[id or ""]] for (_, id), line in zip(queries, scores, strict=True)]
    return [1 + sum(other > own for other in line) for own, line in zip(found, scores, strict=True)]


def main() -> None:
    """Print one line per data set."""
    place, retriever, model = (sys.argv[1:] + ["", "bm25", ""][len(sys.argv) - 1 :])[:3]
    for dataset in ("beavertails", "hhh"):
        found = ranks(official.find_data_dir(place), dataset, retriever, model)
        first, ten = (sum(rank <= most for rank in found) / len(found) for most in (1, 10))
        print(f"{dataset}, {retriever} {model}: n={len(found)}, first {first:.3f}, in ten {ten:.3f}, "
              f"median rank {statistics.median(found):g} of the pool")  # fmt: skip


if __name__ == "__main__":
    main()
