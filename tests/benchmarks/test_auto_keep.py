from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("onnxruntime")

from benchmarks.auto_keep import COVERS, FIXED, compare, main


def test_gain_is_what_lies_above_the_line_of_fixed_fractions():
    scenes = 50
    means = np.arange(1.0, len(FIXED) + len(COVERS) + 1)
    means[len(FIXED) :] = 1.5  # between the first two fixed ones
    kept = np.repeat(means[:, None], scenes, axis=1)
    right = np.zeros_like(kept)
    right[1 : len(FIXED)] = 2
    right[len(FIXED) :] = 1.5
    rows = compare(kept, right, np.full(scenes, 2.0))
    assert [row["accuracy"] for row in rows[:2]] == [0.0, 1.0]
    assert all("gain" not in row for row in rows[: len(FIXED)])
    for row in rows[len(FIXED) :]:
        assert (row["gain"], row["gain_low"], row["gain_high"]) == pytest.approx((0.25,) * 3)


def test_more_tokens_are_kept_where_more_similarity_is_asked_for(tmp_path):
    output = tmp_path / "auto.json"
    main(["--scenes", "2", "--work", str(tmp_path), "--output", str(output)])
    for rows in json.loads(output.read_text()).values():
        assert [row["keep"] for row in rows[: len(FIXED)]] == list(FIXED)
        kept = [row["mean_kept"] for row in rows[len(FIXED) :]]
        assert kept == sorted(kept)
        assert kept[0] < kept[-1]
        assert all(0 <= row["accuracy"] <= 1 for row in rows)
