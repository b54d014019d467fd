"""How often a retriever picks the training row whose personas the authors retrieved for a test prompt.

    python benchmarks/retrieval_agreement.py DATA_DIR [bm25]
    python benchmarks/retrieval_agreement.py DATA_DIR late colbert-ir/colbertv2.0

The authors' row is known where their retrieved personas are those of one released training row. Per data set:
test rows with such a row, the share for which the retriever's first row is that one, the share with it among
the first ten, and the median rank. Needs the authors' data; the retrievers with a model need it and the extra
``retrieval``.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from persona_lib.data import official, retrieval
from persona_lib.texts import POOL_SPLITS


def ranks(folder: Path, dataset: str, retriever: str, model: str) -> list[int]:
    """Return, per test row, how many pool rows the retriever puts before the authors' row, plus one."""
    rows = official.load_official(folder, dataset)
    pool = [row for split in POOL_SPLITS for row in rows[split]]
    place = {row.id: number for number, row in enumerate(pool)}
    queries = [row for row in rows["test"] if row.retrieved_id in place]
    scores = retrieval.SCORERS[retriever](
        [row.prompt for row in queries], [row.prompt for row in pool], model
    )
    return [
        1 + sum(other > line[place[row.retrieved_id]] for other in line)
        for row, line in zip(queries, scores, strict=True)
    ]


def main() -> None:
    """Print one line per data set."""
    folder = official.find_data_dir(sys.argv[1] if len(sys.argv) > 1 else "")
    retriever = sys.argv[2] if len(sys.argv) > 2 else "bm25"
    model = sys.argv[3] if len(sys.argv) > 3 else ""
    for dataset in ("beavertails", "hhh"):
        found = ranks(folder, dataset, retriever, model)
        first, ten = (sum(rank <= most for rank in found) / len(found) for most in (1, 10))
        print(
            f"{dataset}, {retriever} {model}: n={len(found)}, first {first:.3f}, in ten {ten:.3f}, ", end=""
        )
        print(f"median rank {statistics.median(found):g} of the pool")


if __name__ == "__main__":
    main()
