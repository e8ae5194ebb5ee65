import json

import numpy as np
import pytest

from sigmma_sc.registration.certificate import refusal
from sigmma_sc.registration.coarse import Candidate
from sigmma_sc.registration.pose import similarity
from sigmma_sc.registration.record import record_of
from sigmma_sc.registration.register import Registered
from sigmma_sc.registration.residuals import Residuals
from sigmma_sc.tissue.setup import slides_of


def test_a_record_is_json_and_says_how_poses_lie(tiny):
    (slide,) = slides_of(tiny)
    middle = slide.xy.mean(axis=0)
    best = similarity(np.deg2rad(30), 1.01, True, middle, middle)
    far = best.copy()
    far[:2, 2] += [30, 40]
    residuals = Residuals(np.array([[1.0, 2]]), np.array([[0.125, -3]]))
    found = Registered(best, refusal("x"), "nuclei", False, residuals, [Candidate(best, 0.5), Candidate(far, 0.25)])
    record = json.loads(json.dumps(record_of(slide, found)))
    np.testing.assert_array_equal(record["matrix"], best)
    assert record["residuals"] == [[1, 2, 0.12, -3]]
    first, second = record["poses"]
    assert first == {"score": 0.5, "distance": 0, "turn": 30, "scale": 1.01, "mirrored": True}
    assert second["distance"] == pytest.approx(50 * slide.microns_per_pixel, abs=0.06)


def test_without_a_pose_there_is_nothing_to_draw(tiny):
    (slide,) = slides_of(tiny)
    record = record_of(slide, Registered(None, refusal("x"), "expression", False, None, []))
    assert (record["matrix"], record["poses"], record["residuals"]) == (None, [], [])
