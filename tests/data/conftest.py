"""What tests of data share."""

from __future__ import annotations

import pytest

from cluster import Cluster
from scfegan_ray.data import pipeline


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Prepare in this process instead of on Ray."""
    made = Cluster()
    monkeypatch.setattr(pipeline, "_run", made.run)
    return made
