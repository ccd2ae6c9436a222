#!/usr/bin/env python3
"""Makes series.json: series of counts with the expected verdict per interval, from the definition of the bands.

Needs numpy and pandas: python3 make.py > series.json
"""
import json

import numpy as np
import pandas as pd

N = 120
rng = np.random.default_rng(20)
t = np.arange(N)


def with_values(base, changes):
    out = np.array(base, dtype=float)
    for at, value in changes.items():
        out[at] = value
    return out


SERIES = {
    "constant": np.full(N, 100.0),
    "constant and one more": with_values(np.full(N, 100.0), {40: 101, 80: 99, 90: 110, 100: 111, 110: 89}),
    "trend": 50.0 + 3 * t,
    "daily wave": np.round(500 + 300 * np.sin(2 * np.pi * t / 48)),
    "poisson": rng.poisson(200, N).astype(float),
    "bursts": with_values(rng.poisson(50, N), {30: 500, 31: 600, 60: 2000, 90: 5000, 91: 10}),
    "silence": with_values(rng.poisson(40, N), {i: 0 for i in range(50, 80)}),
    "zeros": np.zeros(N),
    "small counts": rng.poisson(0.7, N).astype(float),
    "huge counts": 1e9 + rng.integers(-1000, 1000, N) + with_values(np.zeros(N), {70: 5e7, 100: -9e8}),
    "huge and nearly constant": 1e9 + rng.integers(0, 3, N).astype(float),
    "missing": with_values(rng.poisson(80, N), {30: np.nan, 45: np.nan, 46: np.nan, 47: 400, 90: np.nan, 91: 0}),
}
SETTINGS = [
    {"window": 20, "sigma": 3.0, "min_width": 10.0, "min_width_percent": 1.0},
    {"window": 2, "sigma": 1.5, "min_width": 0.5, "min_width_percent": 0.0},
    {"window": 60, "sigma": 2.0, "min_width": 1.0, "min_width_percent": 10.0},
    {"window": 10, "sigma": 0.0, "min_width": 0.0, "min_width_percent": 0.0001},
]


def evaluate(counts, s):
    known = pd.Series(counts).dropna()  # a missing interval neither enters a window nor is evaluated
    rows = []
    for i, count in enumerate(counts):
        if np.isnan(count):
            rows.append(["unknown"])
            continue
        window = known[known.index < i].to_numpy()[-s["window"]:]
        if len(window) < s["window"]:
            rows.append(["warm_up"])
            continue
        average = np.mean(window)
        width = max(s["sigma"] * np.std(window, ddof=1), s["min_width"], s["min_width_percent"] / 100 * average)
        upper, lower = average + width, average - width
        silent = count == 0 and not (window == 0).any() and average >= s["min_width"]
        verdict = "high" if count > upper else "low" if count < lower or silent else "normal"
        rows.append([verdict, float(average), float(lower), float(upper)])
    return rows


cases = [
    {"name": name, "settings": s, "counts": [None if np.isnan(c) else int(c) for c in counts], "expected": evaluate(counts, s)}
    for name, counts in SERIES.items()
    for s in SETTINGS
]
print("[" + ",\n".join(json.dumps(case) for case in cases) + "]")
