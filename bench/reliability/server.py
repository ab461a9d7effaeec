"""Starts and stops the program: a server on a free port, or a command that ends."""

import os
import re
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass

import client

MIB = 1 << 20
# A part of the message that the bundled model is for demonstrations.
NOTICE = "is a small model for demonstrations"


class NotStarted(Exception):
    """The server ended, or was not ready in time."""


class Server:
    """A running `qwen3-embed serve` on 127.0.0.1. `prepare` runs in the child before the program starts."""

    def __init__(self, program, *flags, port=0, prepare=None, start_timeout=120):
        self.log_file = tempfile.TemporaryFile()
        command = [program, "serve", "--port", str(port), *flags]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=self.log_file,
            env=environment(RUST_LOG="warn,qwen3_embed::serve=info"),
            preexec_fn=prepare,
        )
        line = self.process.stdout.readline().decode()
        found = re.search(r"http://[^:]*:(\d+)", line)
        if not found:
            code = self.process.wait()
            raise NotStarted(f"{describe_exit(code)}: {last_line(self.log())}")
        self.port = int(found[1])
        self._wait_until_ready(start_timeout)

    def _wait_until_ready(self, timeout):
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise NotStarted(f"{describe_exit(self.process.returncode)}: {last_line(self.log())}")
            if client.get(self.port, "/readyz", timeout=5).status == 200:
                return
            time.sleep(0.02)
        self.kill()
        raise NotStarted(f"not ready after {timeout} s: {last_line(self.log())}")

    def is_alive(self):
        return self.process.poll() is None

    def rss_mib(self):
        """Resident memory now, in MiB."""
        return self._status("VmRSS") / 1024

    def peak_mib(self):
        """Largest resident memory since `reset_peak`, in MiB."""
        return self._status("VmHWM") / 1024

    def reset_peak(self):
        with open(f"/proc/{self.process.pid}/clear_refs", "w") as file:
            file.write("5")

    def n_threads(self):
        return self._status("Threads")

    def n_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def log(self):
        self.log_file.seek(0)
        return self.log_file.read().decode(errors="replace")

    def stop(self, timeout=40):
        """Sends SIGTERM and returns the exit status."""
        if self.is_alive():
            self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            code = None
        self.process.stdout.close()
        return code

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

    def _status(self, field):
        with open(f"/proc/{self.process.pid}/status") as file:
            for line in file:
                if line.startswith(field + ":"):
                    return int(line.split()[1])
        return 0


@dataclass
class Ended:
    """A command that has ended. `code` is None if it was killed because it took too long."""

    code: int | None
    output: bytes
    errors: str
    seconds: float

    def last_error(self):
        return last_line(self.errors)

    def describe(self):
        return f"{describe_exit(self.code)} after {self.seconds:.1f} s: {self.last_error()[:300]}"


def run(program, *arguments, stdin=b"", output=subprocess.PIPE, timeout=120, **options):
    """Runs a command of the program to its end."""
    began = time.monotonic()
    process = subprocess.Popen(
        [program, *arguments],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=subprocess.PIPE,
        env=environment(),
        **options,
    )
    try:
        out, errors = process.communicate(stdin, timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
        code = None
    return Ended(code, out or b"", errors.decode(errors="replace"), time.monotonic() - began)


def environment(**variables):
    """The environment without variables that change the program's settings, and without access to the hub."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("QWEN3_EMBED_", "RUST_"))}
    return kept | {"HF_HUB_OFFLINE": "1"} | variables


def describe_exit(code):
    if code is None:
        return "no end"
    return f"exit status {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"


def last_line(text):
    """The line that says why the program ended: an error, a panic, a failed allocation, or else the last line."""
    lines = [line for line in text.splitlines() if line.strip() and " INFO " not in line and NOTICE not in line]
    reasons = [line for line in lines if line.startswith(("error: ", "memory allocation")) or "panicked" in line]
    return (reasons or lines[-1:] or ["(no message)"])[0]
