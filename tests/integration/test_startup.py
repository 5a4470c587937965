from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.processes import free_ports


@pytest.mark.parametrize("seconds", [0.8, 1.1, 1.4, 1.7, 2.0])
def test_a_signal_while_it_starts_ends_the_service(seconds: float, tmp_path: Path) -> None:
    port, grpc_port = free_ports(2)
    command = [sys.executable, "-m", "understudy", "serve", "generator"]
    command += ["--port", str(port), "--grpc-port", str(grpc_port)]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        # Not a wait for something: the signal has to fall into different phases of the start.
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(20)
        finally:
            process.kill()
    # Before Python has come to our code, the signal's own default ends the process.
    assert code in (0, -signal.SIGTERM)
