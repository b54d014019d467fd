"""``--grid``: the runs of a profile, one line each, as they would be answered and judged. Runs nothing."""

from __future__ import annotations

from persona_lib.config import Run
from persona_lib.evaluation.tailor import generation_folder, grid
from persona_lib.profiles import Profile


def grid_lines(profile: Profile, text: str = "") -> list[str]:
    """Return a line per run of the grid whose line holds every word of ``text``, and their number."""
    lines = []
    for dataset in profile.datasets:
        for seed in profile.seeds:
            run = Run(profile, dataset, seed)
            for spec in grid(run):
                state = (
                    "answered" if (generation_folder(run, spec) / "done.json").exists() else "not answered"
                )
                name = f"{dataset} seed {seed}"
                cells = f"{spec.arm:<17} told {spec.eval_persona:<19} as {spec.persona_format:<13}"
                lines.append(f"{name:<22} {cells} {state}")
    kept = [line for line in lines if all(word in line for word in text.split())]
    return [*kept, f"{len(kept)} of {len(lines)} runs"]
