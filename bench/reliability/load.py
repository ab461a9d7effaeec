"""Long load: a soak at a fixed share of the capacity, and restarts under load."""

import asyncio
import random
import socket
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

import client
from server import NotStarted, Server, describe_exit, last_line

CAPACITY_S = 20
CLOSED_LOOP_CLIENTS = 16
RERANK_SHARE = 0.2
# Connections that were idle for longer are not used again, because the server closes them after 120 s.
IDLE_S = 60


@dataclass
class Minute:
    """The requests that began in one minute."""

    latencies: list = field(default_factory=list)
    errors: Counter = field(default_factory=Counter)
    rss_mib: float = 0.0

    def percentile(self, share):
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3 if ordered else float("inf")


class Clients:
    """Connections to a server that are used again, and the requests that are sent on them."""

    def __init__(self, port, seed):
        self.port, self.rng = port, random.Random(seed)
        self.idle = []
        self.requests = [self._make() for _ in range(2000)]

    def _make(self):
        """An ordinary request: 1 to 4 texts or documents, mostly short, some of hundreds of words."""
        if self.rng.random() < RERANK_SHARE:
            documents = [self._text() for _ in range(self.rng.randint(1, 4))]
            return client.post("/v1/rerank", {"query": self._text(12), "documents": documents})
        texts = [self._text() for _ in range(self.rng.randint(1, 4))]
        return client.post("/v1/embeddings", {"input": texts})

    def _text(self, longest=1000):
        n_words = min(longest, max(1, int(self.rng.lognormvariate(3.2, 1.0))))
        return " ".join(self.rng.choice(WORDS) for _ in range(n_words))

    def next_request(self):
        return self.rng.choice(self.requests)

    async def send(self, request):
        """Sends a request. Returns what went wrong, or an empty text."""
        try:
            reader, writer = await self._connection()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            status, headers, _ = client.split(head)
            await reader.readexactly(int(headers["content-length"]))
        except (OSError, asyncio.IncompleteReadError, KeyError) as error:
            return f"{type(error).__name__}: {error}"
        self.idle.append((time.monotonic(), reader, writer))
        return "" if status == 200 else f"status {status}"

    async def _connection(self):
        while self.idle:
            since, reader, writer = self.idle.pop()
            if time.monotonic() - since < IDLE_S:
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port)


WORDS = ("the model reads texts and writes vectors for search ranking of documents in many languages with small "
         "errors because weights are rounded when batches contain long and short sequences").split()


def soak(args, out):
    """Poisson arrivals at a share of the capacity, for minutes: no errors, no growth of RSS or of the 99th percentile."""
    # With --reranker-path, the bundled model is served only if its folder is named.
    models = ["--model-path", args.model or args.bundled, "--reranker-path", f"{args.fixtures}/rerankers/tied"]
    with Server(args.program, *models) as server:
        minutes = asyncio.run(run_soak(args, out, server))
        out.check(server.is_alive(), "the server is still running")
        panics = server.log().count("panicked")
        out.check(panics == 0, f"{panics} panics in the log")
    judge_soak(out, minutes)


async def run_soak(args, out, server):
    capacity = await measure_capacity(server)
    rate = capacity * args.load
    out.saw(f"capacity {capacity:.0f} requests/s with {CLOSED_LOOP_CLIENTS} clients, measured for {CAPACITY_S} s")
    out.threw(f"{rate:.0f} requests/s with Poisson arrivals for {args.minutes:g} minutes, "
              f"{RERANK_SHARE:.0%} of them to rerank")
    clients, rng = Clients(server.port, seed=2), random.Random(5)
    minutes, running = [], set()
    began = time.monotonic()
    due = began
    reporter = asyncio.create_task(report(out, server, minutes, began))
    while due < began + args.minutes * 60:
        due += rng.expovariate(rate)
        delay = due - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        index = int((due - began) / 60)
        while len(minutes) <= index:
            minutes.append(Minute())
        task = asyncio.create_task(timed(clients, minutes[index], due))
        running.add(task)
        task.add_done_callback(running.discard)
    if running:
        await asyncio.wait(running, timeout=60)
    for _ in running:
        minutes[-1].errors["no response after 60 s"] += 1
    reporter.cancel()
    # Arrivals after the last whole minute are a minute of their own, which is too short to judge.
    minutes = minutes[:max(1, round(args.minutes))]
    minutes[-1].rss_mib = server.rss_mib()
    return minutes


async def timed(clients, minute, due):
    """Sends a request. Its latency counts from the time when it was due, so a slow server does not slow the arrivals."""
    trouble = await clients.send(clients.next_request())
    if trouble:
        minute.errors[trouble] += 1
    else:
        minute.latencies.append(time.monotonic() - due)


async def measure_capacity(server):
    """Requests per second of clients that send their next request after each response."""
    clients = Clients(server.port, seed=1)
    n_done, errors = 0, Counter()
    end = time.monotonic() + CAPACITY_S

    async def loop():
        nonlocal n_done
        while time.monotonic() < end:
            trouble = await clients.send(clients.next_request())
            n_done += not trouble
            errors[trouble] += bool(trouble)

    await asyncio.gather(*[loop() for _ in range(CLOSED_LOOP_CLIENTS)])
    if n_done == 0:
        raise RuntimeError(f"no request succeeded: {errors}")
    return n_done / CAPACITY_S


async def report(out, server, minutes, began):
    """Prints the figures of every minute when it has ended."""
    index = 0
    while True:
        await asyncio.sleep(max(0, began + (index + 1) * 60 - time.monotonic()) + 1)
        minute = minutes[index]
        minute.rss_mib = server.rss_mib()
        out.saw(f"minute {index + 1}: {len(minute.latencies)} requests, p50 {minute.percentile(0.5):.1f} ms, "
                f"p99 {minute.percentile(0.99):.1f} ms, RSS {minute.rss_mib:.0f} MiB, "
                f"threads {server.n_threads()}, errors {dict(minute.errors) or 0}")
        index += 1


def judge_soak(out, minutes):
    errors = sum((minute.errors for minute in minutes), Counter())
    n_requests = sum(len(minute.latencies) for minute in minutes)
    out.check(not errors, f"{n_requests} requests, errors: {dict(errors) or 'none'}")
    whole = Minute([latency for minute in minutes for latency in minute.latencies])
    out.saw(f"all: p50 {whole.percentile(0.5):.1f} ms, p99 {whole.percentile(0.99):.1f} ms")
    if len(minutes) < 3:
        out.saw("fewer than 3 minutes: memory and latency are not judged")
        return
    third = len(minutes) // 3
    # The heap grows during the first third, until it has room for the largest requests that come together.
    thirds = (minutes[:third], minutes[third:-third], minutes[-third:])
    before, middle, last = (statistics.median(minute.rss_mib for minute in part) for part in thirds)
    out.check(last <= 1.03 * middle, f"median RSS {before:.0f} MiB in the first third, {middle:.0f} MiB in the second, "
              f"{last:.0f} MiB in the last")
    first = Minute([latency for minute in minutes[:third] for latency in minute.latencies]).percentile(0.99)
    final = Minute([latency for minute in minutes[-third:] for latency in minute.latencies]).percentile(0.99)
    out.check(final <= 1.5 * first, f"p99 {first:.1f} ms in the first third, {final:.1f} ms in the last third")


class RestartClient:
    """Sends requests without pause. Every other connection is used for several requests.

    A request is lost if it was sent on a connection that was established, and no whole response came. There are two
    exceptions, because HTTP allows a server to close an idle connection at any time: a request on a connection that
    was used before, if no byte of a response came, is sent again; so is a request whose connection was refused.
    """

    def __init__(self, port, index):
        self.port, self.index = port, index
        self.counts = Counter()
        self.lost = []
        self.expected = None
        self.is_running = True
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        is_reused = self.index % 2 == 1
        texts = [f"client {self.index}, text {i}" for i in range(1 + self.index % 8 * 4)]
        request = client.post("/v1/embeddings", {"input": texts, "dimensions": 16})
        connection, n_used = None, 0
        while self.is_running:
            if connection is None:
                connection, n_used = self._connect(), 0
                if connection is None:
                    continue
            is_open = self._send(connection, request, n_used)
            n_used += 1
            if not is_open or not is_reused:
                connection.close()
                connection = None

    def _connect(self):
        try:
            return socket.create_connection(("127.0.0.1", self.port), timeout=60)
        except OSError:
            self.counts["refused"] += 1
            time.sleep(0.002)
            return None

    def _send(self, connection, request, n_used):
        """Sends a request and reads the response. Returns whether the connection can be used again."""
        received = bytearray()
        trouble = "closed"
        sent_at = time.time()
        try:
            connection.sendall(request)
            while not client.is_complete(received):
                data = connection.recv(65536)
                if not data:
                    break
                received += data
        except OSError as error:
            trouble = str(error)
        if not client.is_complete(received):
            if n_used and not received:
                self.counts["idle connection closed"] += 1
            else:
                kind = "partial response" if received else "no response"
                self.lost.append(f"{kind} on a connection used {n_used} times, sent at {sent_at:.4f}: {trouble}")
            return False
        reply = client.Reply()
        client.parse(bytes(received), reply)
        self.counts[reply.status] += 1
        if reply.status == 200:
            body = reply.json()
            self.expected = self.expected or body
            self.counts["other vectors"] += body != self.expected
        return reply.headers.get("connection", "") != "close"


def restarts(args, out):
    """The server is restarted under load: every request that it accepted gets a whole response."""
    port = free_port()
    server = Server(args.program, port=port)
    clients = [RestartClient(port, index) for index in range(16)]
    out.threw(f"{args.times} restarts with SIGTERM, under the load of {len(clients)} clients")
    seconds, rng = [], random.Random(1)
    try:
        for index in range(args.times):
            time.sleep(rng.uniform(0.5, 1.5))
            n_lost = sum(len(one.lost) for one in clients)
            began = time.monotonic()
            code = server.stop()
            stopped = time.monotonic() - began
            if code != 0:
                out.check(False, f"restart {index + 1}: {describe_exit(code)}: {last_line(server.log())}")
            server = Server(args.program, port=port)
            seconds.append(time.monotonic() - began)
            lost = sum(len(one.lost) for one in clients) - n_lost
            out.saw(f"restart {index + 1}: stopped in {stopped:.2f} s, ready again after {seconds[-1]:.2f} s, lost {lost}")
        time.sleep(1)
    except NotStarted as error:
        out.check(False, f"the server did not start again: {error}")
    finally:
        for one in clients:
            one.is_running = False
        for one in clients:
            one.thread.join(70)
        server.stop()
    judge_restarts(out, clients)


def judge_restarts(out, clients):
    counts = sum((one.counts for one in clients), Counter())
    lost = [text for one in clients for text in one.lost]
    for text in lost[:10]:
        out.saw(f"lost: {text}")
    statuses = {status: n for status, n in counts.items() if isinstance(status, int)}
    out.saw(f"responses by status: {statuses}; connections refused: {counts['refused']}; idle connections that the "
            f"server closed: {counts['idle connection closed']}")
    out.check(not lost, f"{len(lost)} of {sum(statuses.values()) + len(lost)} requests were lost")
    out.check(counts["other vectors"] == 0, f"{counts['other vectors']} responses had other vectors than before")
    out.check(set(statuses) <= {200, 503}, "every status is 200, or 503 while the model is loaded or during shutdown")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
