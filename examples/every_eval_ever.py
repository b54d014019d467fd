"""Write a table of persona swaps as records of Every Eval Ever.

``python examples/every_eval_ever.py TABLE FOLDER``: TABLE is ``results/PROFILE/tables/swap.csv`` of a run, or
``figures/published/PROFILE/swap.csv``. FOLDER gets one JSON file per policy, where the format wants it. The
score is the share of rows whose persona moves the policy's preference towards its user's response.

To check the files: Python 3.12, ``pip install every-eval-ever``, in FOLDER
``every_eval_ever validate data/*/*/*/*.json``.
"""

from __future__ import annotations

import sys
import time
import uuid
from pathlib import Path

from persona_lib import store

MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # the base of the profiles everyday, confirm and authors
BENCHMARK = "persona-swap"
VERSION = "0.3.0"  # of the schema


def result(row: dict) -> dict:
    """Return one line of the table as a result: estimate, 95 % interval and size."""
    interval = {"lower": row["d_positive_low"], "upper": row["d_positive_high"], "confidence_level": 0.95}
    return {
        "evaluation_name": f"persona swap, {row['dataset']}, {row['persona']} personas",
        "source_data": {"dataset_name": row["dataset"], "source_type": "other"},
        "metric_config": {
            "evaluation_description": "share of rows whose persona moves the preference to its response",
            "metric_id": "persona_swap.d_positive", "metric_kind": "accuracy", "metric_unit": "proportion",
            "lower_is_better": False, "score_type": "continuous", "min_score": 0, "max_score": 1,
        },
        "score_details": {"score": row["d_positive"], "uncertainty": {
            "confidence_interval": interval | {"method": "bootstrap over prompts and seeds"},
            "num_samples": row["n"],
        }},
    }  # fmt: skip


def records(table: Path) -> dict[str, dict]:
    """Return one record per policy, by its name; rows per byte of text are left out."""
    rows = [row for row in store.read_csv(table).to_dict("records") if row["measure"] == "policy"]
    now = str(time.time())
    return {
        arm: {
            "schema_version": VERSION,
            "evaluation_id": f"{BENCHMARK}/{MODEL.replace('/', '_')}-{arm}/{now}",
            "retrieved_timestamp": now,
            "source_metadata": {
                "source_type": "evaluation_run", "source_name": "persona_lib",
                "source_organization_name": "The authors of this reproduction package",
                "evaluator_relationship": "first_party",
            },
            "eval_library": {"name": "persona_lib", "version": "0.1.0"},
            "model_info": {
                "name": f"SmolLM2-135M-Instruct, {arm}", "id": MODEL, "developer": "HuggingFaceTB",
                "additional_details": {
                    "deployment_type": "self_deployed", "model_availability": "open_weights", "adapter": arm,
                },
            },
            "evaluation_results": [result(row) for row in rows if row["arm"] == arm],
        }
        for arm in dict.fromkeys(row["arm"] for row in rows)
    }  # fmt: skip


if __name__ == "__main__":
    for record in records(Path(sys.argv[1])).values():
        store.write_json(Path(sys.argv[2]) / "data" / BENCHMARK / MODEL / f"{uuid.uuid4()}.json", record)
