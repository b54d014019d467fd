"""A share with its interval, over one seed or several."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from persona_lib.stats.bootstrap import Interval, bootstrap_mean
from persona_lib.stats.significance import wilson_interval


def share_interval(values: Sequence[np.ndarray], n_resamples: int) -> Interval:
    """Return a mean of 0/1 values with its interval: Wilson's for one seed, else the bootstrap over seeds."""
    values = [v for v in values if len(v)]
    if not values:
        return Interval(None, None, None, 0, 0)
    if len(values) > 1:
        return bootstrap_mean(values, n_resamples, shared_items=len({len(v) for v in values}) == 1)
    n = len(values[0])
    return Interval(float(values[0].mean()), *wilson_interval(float(values[0].sum()), n), n)
