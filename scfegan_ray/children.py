"""A module of this package as a process of its own, beside the one that starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any


def start(
    module: str, settings: Mapping[str, Any], *, environment: Mapping[str, str] | None = None, **options: Any
) -> subprocess.Popen[bytes]:
    """Run `python -m MODULE SETTINGS` with what this process can import, without input and output.

    It is in a process group of its own: Ctrl-C and `timeout` speak to this process alone, which ends it in its own way.

    Args:
        module: its name.
        settings: its one argument, as JSON.
        environment: variables beside those of this process.
        options: others of `subprocess.Popen`.
    """
    paths = {"PYTHONPATH": os.pathsep.join(os.path.abspath(one) for one in sys.path)}
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, json.dumps(settings)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | paths | dict(environment or {}),
        process_group=0,
        **options,
    )
