"""A small container: a cgroup with 2 GiB of memory and half a CPU."""

import contextlib
import os
import re

import client
from outcome import Unavailable
from server import MIB, Server, describe_exit, last_line

ROOT = "/sys/fs/cgroup"
MEMORY = 2048 * MIB
PERIOD_US, QUOTA_US = 100_000, 50_000
NAME = "qwen3-embed-reliability"


class Group:
    """A new cgroup below the current one, of version 2, or of version 1 with a folder for each controller."""

    def __init__(self):
        paths = own_paths()
        if os.path.exists(f"{ROOT}/cgroup.controllers"):
            self.cpu = self.memory = f"{ROOT}{paths.get('', '/')}/{NAME}".replace("//", "/")
            self.limits = {"memory.max": MEMORY, "memory.swap.max": 0, "cpu.max": f"{QUOTA_US} {PERIOD_US}"}
            self.names = {"peak": "memory.peak", "events": "memory.events"}
        else:
            self.memory = f"{ROOT}/memory{paths.get('memory', '/')}/{NAME}".replace("//", "/")
            self.cpu = f"{ROOT}/cpu{paths.get('cpu', '/')}/{NAME}".replace("//", "/")
            self.limits = {"memory.limit_in_bytes": MEMORY, "cpu.cfs_period_us": PERIOD_US, "cpu.cfs_quota_us": QUOTA_US}
            self.names = {"peak": "memory.max_usage_in_bytes", "events": "memory.oom_control"}

    def folders(self):
        return sorted({self.memory, self.cpu})

    def make(self):
        """Makes the cgroup with its limits.

        The limit of swap is left out where the kernel has none.
        """
        try:
            for folder in self.folders():
                os.makedirs(folder, exist_ok=True)
            for name, value in self.limits.items():
                folder = self.cpu if name.startswith("cpu.") else self.memory
                if name != "memory.swap.max" or os.path.exists(f"{folder}/{name}"):
                    write(f"{folder}/{name}", value)
        except OSError as error:
            self.remove()
            raise Unavailable(f"no cgroup can be made here: {error}") from error

    def enter(self):
        """Moves the calling process into the cgroup."""
        for folder in self.folders():
            write(f"{folder}/cgroup.procs", os.getpid())

    def peak_mib(self):
        try:
            return int(read(f"{self.memory}/{self.names['peak']}")) / MIB
        except OSError:
            return float("nan")

    def events(self):
        """What the kernel counted: kills for lack of memory, and periods in which the CPU quota was used up."""
        memory = re.findall(r"oom_kill \d+", read(f"{self.memory}/{self.names['events']}"))
        cpu = re.findall(r"nr_throttled \d+|nr_periods \d+", read(f"{self.cpu}/cpu.stat"))
        return ", ".join(memory + cpu)

    def remove(self):
        for folder in self.folders():
            with contextlib.suppress(OSError):
                os.rmdir(folder)


def own_paths():
    """The cgroup of this process for each controller; the empty name is that of version 2."""
    paths = {}
    for line in read("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    return paths


def small_machine(args, out):
    """2 GiB and half a CPU: 2,048 texts and a long text are answered or refused, and threads follow the quota."""
    group = Group()
    group.make()
    try:
        flags = ["--model-path", args.model] if args.model else []
        with Server(args.program, *flags, prepare=group.enter, start_timeout=args.timeout) as server:
            out.threw(f"a server with {args.model or 'the bundled model'} in a cgroup of 2 GiB and half a CPU")
            small_requests(args, out, group, server)
    finally:
        group.remove()


def small_requests(args, out, group, server):
    compute = re.search(r"(\d+) threads", server.log())
    out.check(compute and compute[1] == "1", f"threads that compute: {compute and compute[1]}; all: {server.n_threads()}")
    out.saw(f"loaded: RSS {server.rss_mib():.0f} MiB")
    requests = {
        "one text": "one text",
        "2,048 texts": [f"text number {i}, with a few more words" for i in range(2048)],
        f"a text of {args.tokens:,} tokens": text_of(server, args.tokens),
        "one text afterward": "one text",
    }
    replies = {}
    for name, texts in requests.items():
        reply = replies[name] = client.embed(server.port, texts, timeout=args.timeout)
        if not server.is_alive():
            out.check(False, f"{name}: the server ended: {describe_exit(server.process.wait())}; "
                      f"{last_line(server.log())}; {group.events()}")
            return
        is_right = reply.status in (200, 400, 413, 429)
        out.check(is_right, f"{name}: {reply.describe()} in {reply.seconds:.1f} s; RSS {server.rss_mib():.0f} MiB, "
                  f"peak of the cgroup {group.peak_mib():.0f} MiB")
    first, last = (replies[name].json() for name in ("one text", "one text afterward"))
    out.check(first == last, "the same text got the same vector before and after")
    out.saw(f"threads: {server.n_threads()}; {group.events()}")


def text_of(server, n_tokens):
    """A text of about, and at most, `n_tokens` tokens."""
    words = " word" * n_tokens
    reply = client.exchange(server.port, [client.post("/tokenize", {"inputs": words})], 120)
    counted = reply.json()
    n_counted = len(counted[0]) if reply.status == 200 else 2 * n_tokens
    n_words = n_tokens * (n_tokens - 2) // n_counted if n_counted > n_tokens - 2 else n_tokens - 2
    return " word" * n_words


def write(path, value):
    with open(path, "w") as file:
        file.write(str(value))


def read(path):
    with open(path) as file:
        return file.read()
