"""Real processes under test: started, waited for, their output kept, ended whatever happens."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def free_ports(number: int) -> list[int]:
    """Different TCP ports that were free a moment ago.

    They lie below the range from which the system takes those of outgoing connections, so that
    none of these gets in between.
    """
    with ExitStack() as probes:
        ports: list[int] = []
        while len(ports) < number:
            port = random.randrange(10_000, 32_000)
            probe = probes.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            ports.append(port)
        return ports


def wait_until(true: Callable[[], bool], what: str, seconds: float = 30.0) -> None:
    """Poll until something is true.

    Raises:
        TimeoutError: it did not come true in time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {seconds:g} s: not {what}")
        time.sleep(0.02)


class ServiceProcess:
    """A serving process on ports of its own.

    Attributes:
        url: address of HTTP.
        grpc: address of gRPC, ``host:port``.
    """

    def __init__(
        self, arguments: Sequence[str], environ: Mapping[str, str], port: int, grpc_port: int
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.grpc = f"127.0.0.1:{grpc_port}"
        descriptor, path = tempfile.mkstemp(prefix="service-", suffix=".log")
        self._log = Path(path)
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environ},
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(descriptor)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What the process has written so far, stdout and stderr together."""
        return self._log.read_text(errors="replace")

    def ready(self) -> bool:
        """Whether ``/readyz`` says so.

        Raises:
            AssertionError: the process has ended.
        """
        assert self._process.poll() is None, f"ended with {self._process.returncode}:\n{self.log}"
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=2) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def wait_ready(self, seconds: float = 60.0) -> None:
        """Wait until the process is ready.

        Raises:
            AssertionError: it has ended, or is not ready in time; with its log.
        """
        try:
            wait_until(self.ready, "ready", seconds)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.log}") from error

    def terminate(self) -> None:
        self._process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = 30.0) -> int:
        """Wait for the end and return the exit code."""
        return self._process.wait(seconds)

    def close(self) -> None:
        """Kill what still runs of the process and its children."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        self._log.unlink(missing_ok=True)


@contextmanager
def service(
    arguments: Sequence[str],
    environ: Mapping[str, str] | None = None,
    *,
    port: int | None = None,
    grpc_port: int | None = None,
) -> Iterator[ServiceProcess]:
    """Run ``python arguments…`` with free ports in its environment."""
    free = free_ports(2)
    port, grpc_port = port or free[0], grpc_port or free[1]
    ports = {"UNDERSTUDY_PORT": str(port), "UNDERSTUDY_GRPC_PORT": str(grpc_port)}
    filled = [argument.format(port=port, grpc_port=grpc_port) for argument in arguments]
    process = ServiceProcess(filled, {**ports, **(environ or {})}, port, grpc_port)
    try:
        yield process
    finally:
        process.close()
