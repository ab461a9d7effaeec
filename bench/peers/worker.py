"""A peer in a process of its own, so that its memory is its own and goes with it."""

import multiprocessing
import os
import pathlib
import statistics
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from peers import KINDS, Peer, Setup, Unsupported
from workloads import Tokens, Vectors


class PeerFailed(Exception):
    """A peer raised, or its process ended; the message says why."""


@dataclass(frozen=True)
class Run:
    """What came of embedding one workload."""

    seconds: float
    """The median, if there were several runs."""
    vectors: Vectors


class Service:
    """What a peer's process can be asked to do, by method name."""

    _peer: Peer

    def prepare(self, name: str, setup: Setup) -> None:
        """Converts the checkpoint for the peer, unless it was before."""
        kind = KINDS[name]
        kind.peer.prepare(setup, kind.precision)

    def load(self, name: str, setup: Setup) -> float:
        """Loads the peer; the seconds it took."""
        kind = KINDS[name]
        start = time.perf_counter()
        self._peer = kind.peer(setup, kind.precision)
        return time.perf_counter() - start

    def run(self, batches: list[list[Tokens]], n_runs: int = 1) -> Run:
        """Embeds the batches one after the other, `n_runs` times."""
        seconds = []
        inputs = [self._peer.inputs(batch) for batch in batches]
        for _ in range(n_runs):
            start = time.perf_counter()
            vectors = [self._peer.embed(each) for each in inputs]
            seconds.append(time.perf_counter() - start)
        return Run(statistics.median(seconds), np.concatenate(vectors))

    def peak_bytes(self) -> int:
        """The most memory that the peer had so far."""
        return self._peer.peak_bytes()


class Worker:
    """The near end of a peer's process."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def call(self, method: str, *arguments: Any) -> Any:
        """What the method of `Service` returns.

        Raises `PeerFailed` where it raises.
        """
        try:
            self._connection.send((method, arguments))
            failure, result = self._connection.recv()
        except (EOFError, ConnectionError):
            raise PeerFailed("its process ended without a word; was memory short?") from None
        if failure is not None:
            raise PeerFailed(failure)
        return result


@contextmanager
def worker(log: pathlib.Path) -> Iterator[Worker]:
    """A fresh process, which ends with the block. What its libraries print goes to `log`."""
    # Not forked: a library's threads and memory do not survive a fork.
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve, args=(far, log))
    process.start()
    far.close()
    try:
        yield Worker(near)
    finally:
        near.close()
        process.join()


def serve(connection: Connection, log: pathlib.Path) -> None:
    """Answers requests until the other end closes."""
    with log.open("a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    service = Service()
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            failure, result = None, getattr(service, method)(*arguments)
        except Unsupported as reason:
            failure, result = str(reason), None
        except Exception:
            failure, result = traceback.format_exc(), None
        connection.send((failure, result))
