"""What people choose about a server of edits."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Literal

from scfegan_ray.config import check_not_negative, check_positive
from scfegan_ray.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """How edits are served."""

    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own (127.0.0.1) makes the server ask for a token, which is part of
    the URL that is printed."""
    port: int = 7860
    """0 takes any that is free."""
    max_upload_mb: int = 64
    """Largest photograph that is taken, as a file."""
    max_megapixels: float = 64.0
    """Largest photograph that is taken, in pixels; read from its header."""
    max_waiting: int = 32
    """Requests that may wait for the model; more are told to come again (503)."""
    max_waiting_per_client: int = 8
    """Requests of one client (address) that may wait."""
    upload_seconds: float = 60.0
    """Time for a request to arrive."""
    runtime: Literal["auto", "torch", "openvino"] = "auto"
    """What computes what is seen while one draws; auto: OpenVINO on CPUs where it is installed. What is saved is always
    computed by torch in float32."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """auto: bfloat16 where the hardware computes it natively. int8: by OpenVINO alone, nearly what is saved."""
    poll_seconds: float = 30.0
    """How often the registry is asked for a new champion."""
    replicas: int = 0
    """Copies that Ray Serve runs on a cluster, each with a model of its own. 0: this process alone, without Ray."""
    cpus_per_replica: float = 1.0
    """Cores of each of them."""

    def __post_init__(self) -> None:
        """Check ranges.

        Raises:
            ConfigError: a value is out of range.
        """
        if not 0 <= self.port < 1 << 16:
            raise ConfigError(f"port is {self.port}; give one from 1 to 65535, or 0 for any")
        for name in (
            "max_upload_mb",
            "max_megapixels",
            "max_waiting",
            "max_waiting_per_client",
            "upload_seconds",
            "poll_seconds",
            "cpus_per_replica",
        ):
            check_positive(name, getattr(self, name))
        check_not_negative("replicas", self.replicas)

    @property
    def is_local(self) -> bool:
        """Nobody but this machine's own users can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False
