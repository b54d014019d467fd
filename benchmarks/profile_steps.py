"""Where our SFT and DPO steps spend their time: ``python benchmarks/profile_steps.py`` lists operations.

Eight pairs of everyday, one step, float32, with DPO's reference log-probabilities; loading is left out.
"""

from __future__ import annotations

from operator import itemgetter

import epochs
import torch
import training


def main() -> None:
    """Profile one step of each method and print its operations, those of the most time first."""
    epochs.matrix_rate = lambda *_: 1.0  # its products are no part of a step
    for method in ("sft", "dpo"):
        setup = epochs.make_setup(method, "everyday", False, 8)
        model = setup.base("float32")
        with torch.profiler.profile() as seen:
            epochs.ours(setup._replace(base=lambda dtype, model=model: model), method, training.TRL)
        spent: dict[str, float] = {event.key: event.self_cpu_time_total for event in seen.key_averages()}
        total, lines = sum(spent.values()), sorted(spent.items(), key=itemgetter(1), reverse=True)
        print(f"{method}: {total / 1e6:.2f} s;", ", ".join(f"{k} {v / total:.0%}" for k, v in lines[:10]))


if __name__ == "__main__":
    main()
