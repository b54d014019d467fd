"""Scores of verdicts with their intervals, as the tables have them, and how to write verdicts down."""

from persona_lib.intervals import delta_pq_of, make_pool, net_columns, net_of

VERDICTS = {
    "W": "win",
    "T": "tie",
    "L": "loss",
    "?": "unparsed",
    "U": "unparsed",
    1: "win",
    0: "tie",
    -1: "loss",
}
STATISTICS = {"personalization": net_of("p"), "quality": net_of("q"), "delta_pq": delta_pq_of("p", "q")}


def scores(p, q, n_resamples=2000, seed=0, shared_items=False):
    """Pool verdicts of both rubrics (one sequence of letters or signs per seed): {score: Interval}."""
    columns = {}
    for name, by_seed in (("p", p), ("q", q)):
        named = [{f"{i:04}": VERDICTS[v] for i, v in enumerate(verdicts)} for verdicts in by_seed]
        columns |= net_columns(name, named)
    pool = make_pool(columns, n_resamples, seed, shared_items)
    return {name: pool.interval(statistic) for name, statistic in STATISTICS.items()}
