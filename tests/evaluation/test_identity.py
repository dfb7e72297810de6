"""The network that tells faces apart, with its real weights."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from scfegan_ray import faces
from scfegan_ray.evaluation.identity import EMBEDDING_SIZE, FaceEmbedder, _to_template


def test_eyes_come_to_where_the_network_expects_them() -> None:
    eyes = np.array([20.0, 30.0, 44.0, 36.0], np.float32)
    matrix = _to_template(eyes)
    moved = np.array([[20, 30, 1], [44, 36, 1]]) @ matrix.T
    assert moved == pytest.approx(np.array([[38.2946, 51.6963], [73.5318, 51.5014]]), abs=1e-4)
    # Nothing is bent or mirrored: the matrix turns and scales.
    assert matrix[:, :2] @ matrix[:, :2].T == pytest.approx(np.linalg.det(matrix[:, :2]) * np.eye(2))


@pytest.mark.network
def test_a_face_is_more_like_itself_than_like_another() -> None:
    embedder = FaceEmbedder()
    drawn = [faces.draw_face(0, index, 128) for index in range(3)]
    eyes = [np.asarray(one.eyes, np.float32) for one in drawn]
    found = [embedder(one.image, at) for one, at in zip(drawn, eyes, strict=True)]
    for one in found:
        assert one.shape == (EMBEDDING_SIZE,)
        assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-6)
    blurred = embedder(cv2.GaussianBlur(drawn[0].image, (0, 0), 1.0), eyes[0])
    assert blurred @ found[0] > 0.9
    assert blurred @ found[0] > max(found[0] @ found[1], found[0] @ found[2])
    assert np.array_equal(embedder(drawn[0].image, eyes[0]), found[0])
