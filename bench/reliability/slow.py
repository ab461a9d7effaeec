"""Clients that are slow, idle, or never finish."""

import contextlib
import json
import selectors
import socket
import threading
import time

import client
from server import Server

N_SLOW = 200
N_IDLE = 10_000
KEEP_ALIVE_S = 20
BODY_TIMEOUT_S = 60
WRITE_TIMEOUT_S = 60
PAYLOAD_LIMIT = 16 << 20


class Prober:
    """Another client: sends a small request again and again, each on a new connection, and notes the latencies."""

    def __init__(self, port, pause=0.05):
        self.port, self.pause = port, pause
        self.latencies, self.failures = [], []
        self.is_running = True
        self.thread = threading.Thread(target=self._probe, daemon=True)
        self.thread.start()

    def _probe(self):
        while self.is_running:
            reply = client.embed(self.port, "a small request", timeout=30)
            if reply.status == 200:
                self.latencies.append(reply.seconds)
            else:
                self.failures.append(reply.describe())
            time.sleep(self.pause)

    def take(self):
        """The latencies since the last call: (number, median, maximum) in ms; and the failures."""
        taken, self.latencies = sorted(self.latencies), []
        failures, self.failures = self.failures, []
        if not taken:
            return (0, float("inf"), float("inf")), failures
        return (len(taken), taken[len(taken) // 2] * 1e3, taken[-1] * 1e3), failures

    def stop(self):
        self.is_running = False
        self.thread.join(35)


def describe(latencies):
    return f"{latencies[0]} requests, median {latencies[1]:.1f} ms, maximum {latencies[2]:.1f} ms"


def slow_clients(args, out):
    """200 clients that send a byte a second: the server ends them in time, and other clients are as fast as before."""
    with Server(args.program, "--keep-alive-timeout", str(KEEP_ALIVE_S)) as server:
        prober = Prober(server.port)
        time.sleep(5)
        before, _ = prober.take()
        out.saw(f"before: {describe(before)}")
        out.threw(f"{N_SLOW // 2} clients send a head and {N_SLOW // 2} clients a body, a byte a second each")
        in_head, in_body = send_slowly(server.port)
        during, failures = prober.take()
        prober.stop()
        out.check(not failures, f"other clients during it: {describe(during)}; failures: {failures[:2] or 'none'}")
        out.check(during[1] < 2 * before[1] + 5, "the median latency of other clients is at most twice as long")
        judge_slow(out, "head", in_head, KEEP_ALIVE_S, "--keep-alive-timeout")
        judge_slow(out, "body", in_body, BODY_TIMEOUT_S, "the limit for bodies")
        refused = [reply for _, reply in in_body if reply.startswith(b"HTTP/1.1 408 ")]
        out.check(len(refused) == len(in_body), f"{len(refused)} of the clients with a slow body got 408")
        answered = sum(reply.startswith(b"HTTP/1.1 4") for _, reply in in_head)
        out.saw(f"{answered} of the clients with a slow head got a response, the others were closed without one")
        out.check(wait_for(lambda: server.n_files() < 60, 5), f"open files of the server afterward: {server.n_files()}")


def judge_slow(out, part, ends, limit_s, what):
    times = sorted(seconds for seconds, _ in ends)
    is_right = len(ends) == N_SLOW // 2 and limit_s - 2 < times[0] and times[-1] < limit_s + 5
    span = f"after {times[0]:.1f} to {times[-1]:.1f} s" if times else "never"
    out.check(is_right, f"slow {part}: {len(ends)} of {N_SLOW // 2} were ended {span}; {what} is {limit_s} s")


def send_slowly(port):
    """Sends a byte a second on all connections. Returns when each of them was closed, and what it had received."""
    text = client.head("POST", "/v1/embeddings", "X-Padding: " + "x" * 300)
    start = client.head("POST", "/v1/embeddings", "Content-Type: application/json", "Content-Length: 1000")
    bodies = json.dumps({"input": "x" * 980}).encode()
    clients = []
    for index in range(N_SLOW):
        connection = socket.create_connection(("127.0.0.1", port))
        if index % 2:
            connection.sendall(start)
        connection.setblocking(False)
        clients.append([connection, iter(bodies if index % 2 else text), bytearray(), index % 2])
    ends = ([], [])
    began = time.monotonic()
    while clients and time.monotonic() - began < 130:
        time.sleep(1)
        clients = [one for one in clients if not _send_a_byte(one, ends, began)]
    return ends


def _send_a_byte(one, ends, began):
    """Sends the next byte, and reads. Returns whether the connection was closed by the server."""
    connection, source, received, kind = one
    is_closed = False
    with contextlib.suppress(BlockingIOError):
        try:
            data = connection.recv(65536)
            received += data
            is_closed = not data or client.is_complete(received)
        except ConnectionError:
            is_closed = True
    if not is_closed:
        with contextlib.suppress(BlockingIOError, ConnectionError):
            connection.send(bytes([next(source, 32)]))
    if is_closed:
        ends[kind].append((time.monotonic() - began, bytes(received)))
        connection.close()
    return is_closed


def slow_readers(args, out):
    """50 clients that do not read their responses of 6 MB: they are disconnected, and others are answered."""
    texts = [f"text {i}" for i in range(2048)]
    request = client.post("/v1/embeddings", {"input": texts})
    with Server(args.program, "--max-queued-texts", "200000") as server:
        n_files, rss = server.n_files(), server.rss_mib()
        out.threw("50 requests of 2,048 texts whose responses are not read")
        connections = [small_buffer(server.port) for _ in range(50)]
        for connection in connections:
            connection.sendall(request)
        prober = Prober(server.port)
        began = time.monotonic()
        is_ended = wait_for(lambda: server.n_files() <= n_files + 3, WRITE_TIMEOUT_S + 60)
        seconds = time.monotonic() - began
        prober.stop()
        latencies, failures = prober.take()
        out.check(is_ended, f"the server closed the connections after {seconds:.0f} s; open files {server.n_files()}, "
                  f"before {n_files}")
        out.check(not failures, f"other clients meanwhile: {describe(latencies)}; failures: {failures[:2] or 'none'}")
        out.saw(f"RSS {rss:.0f} MiB before, peak {server.peak_mib():.0f} MiB, {server.rss_mib():.0f} MiB afterward")
        for connection in connections:
            connection.close()


def small_buffer(port):
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", port))
    return connection


def idle_connections(args, out):
    """10,000 idle connections: another client is answered, and RSS and open files return."""
    with Server(args.program) as server:
        for _ in range(50):
            client.embed(server.port, "warm")
        n_files, rss = server.n_files(), server.rss_mib()
        out.threw(f"{N_IDLE} connections that send nothing, from several loopback addresses, three times")
        after = []
        for turn in range(3):
            connections = open_idle(out, server)
            time.sleep(2)
            held = server.rss_mib() - rss
            out.saw(f"{len(connections)} connected; the server has {server.n_files()} open files and {held:.0f} MiB more, "
                    f"{held * 1024 / server.n_files():.1f} KiB for each")
            if turn == 0:
                reply = client.embed(server.port, "another client", timeout=10)
                is_right = reply.status == 200 and reply.seconds < 2
                out.check(is_right, f"another client: {reply.describe()} after {reply.seconds:.2f} s")
            for connection in connections:
                connection.close()
            is_back = wait_for(lambda: server.n_files() <= n_files + 5, 20)
            out.check(is_back, f"after closing them: {server.n_files()} open files, before {n_files}")
            reply = client.embed(server.port, "afterward")
            out.check(reply.status == 200, f"afterward: {reply.describe()} after {reply.seconds:.2f} s")
            after.append(server.rss_mib())
        out.check(after[2] < 1.1 * after[1] + 10, f"RSS {rss:.0f} MiB before, then {after[0]:.0f}, {after[1]:.0f} and "
                  f"{after[2]:.0f} MiB after each time")


def open_idle(out, server):
    connections = []
    for index in range(N_IDLE):
        source = (f"127.0.0.{2 + index // 5000}", 0)
        try:
            connections.append(socket.create_connection(("127.0.0.1", server.port), timeout=2, source_address=source))
        except OSError as error:
            out.saw(f"connection {index} failed: {error}")
            break
    return connections


def half_bodies(args, out):
    """64 clients send a body of almost 16 MiB each and do not finish it: memory stays bounded."""
    n_clients = 64
    with Server(args.program) as server:
        rss = server.rss_mib()
        out.threw(f"{n_clients} clients send all but the last byte of a body of 16 MiB, and wait")
        start = client.head("POST", "/v1/embeddings", "Content-Type: application/json",
                            f"Content-Length: {PAYLOAD_LIMIT}")
        body = b'{"input": "' + b"x" * (PAYLOAD_LIMIT - 12)
        connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(n_clients)]
        refused = send_all(connections, start + body)
        time.sleep(1)
        held = server.rss_mib() - rss
        sent = n_clients * PAYLOAD_LIMIT / (1 << 20)
        text = f"RSS grew by {held:.0f} MiB for {sent:.0f} MiB of unfinished bodies; {refused} connections were refused"
        if held > sent / 2:
            out.limit(f"{text}; 512 requests at a time do not limit unfinished bodies")
        else:
            out.check(True, text)
        reply = client.embed(server.port, "another client")
        out.check(reply.status in (200, 429), f"another client: {reply.describe()} in {reply.seconds:.2f} s")
        began = time.monotonic()
        is_ended = wait_for(lambda: server.n_files() < 30, BODY_TIMEOUT_S + 10)
        out.check(is_ended, f"the server ended them after {time.monotonic() - began:.0f} s; "
                  f"RSS {server.rss_mib():.0f} MiB, before {rss:.0f} MiB")
        for connection in connections:
            connection.close()


def send_all(connections, data):
    """Sends `data` on all connections at the same time. Returns how many of them the server closed or answered."""
    refused = 0
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            connection.setblocking(False)
            selector.register(connection, selectors.EVENT_READ | selectors.EVENT_WRITE, memoryview(data))
        end = time.monotonic() + 50
        while selector.get_map() and time.monotonic() < end:
            for key, events in selector.select(1):
                try:
                    if events & selectors.EVENT_READ:
                        raise ConnectionError
                    rest = key.data[key.fileobj.send(key.data):]
                except BlockingIOError:
                    continue
                except ConnectionError:
                    refused += 1
                    rest = b""
                if rest:
                    selector.modify(key.fileobj, selectors.EVENT_READ | selectors.EVENT_WRITE, rest)
                else:
                    selector.unregister(key.fileobj)
    return refused


def wait_for(condition, timeout):
    """Waits until a condition holds. Returns whether it does."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return condition()
