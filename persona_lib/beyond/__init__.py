"""Beyond the paper: calibration, claims, released answers, safety, ratings, users of own data."""
