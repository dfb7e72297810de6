"""What tests of training share."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny import TINY

from cluster import Cluster
from scfegan_ray.data import prepare


@pytest.fixture(scope="session")
def tiny_dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Prepare the tiny config's faces without Ray; return the dataset's URI."""
    place = str(tmp_path_factory.mktemp("prepared") / "made")
    config = replace(TINY, data=replace(TINY.data, prepared=place))
    with pytest.MonkeyPatch.context() as patch:
        made = Cluster()
        patch.setattr(prepare, "_run", made.run)
        return prepare.prepare(config, session=made.session).uri
