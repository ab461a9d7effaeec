"""Simulates the embedding of a collection of documents on a cluster, and shows where the machine hours go.

Documents are grouped into tasks of a number of rows. A machine computes one task at a time with all of its cores. Some
machines are slow, and machines fail. The output is a Markdown table. docs/billion.md explains it.

    python bench/simulation/cluster.py --machines 200 --tokens-per-second 8354
    python bench/simulation/cluster.py --check
"""

import argparse
import math
import random
from collections import deque
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from statistics import fmean, pstdev

# Documents whose lengths are drawn one by one. Sums of tasks come from their mean and standard deviation.
SAMPLE = 50_000
# A run that takes this many times the ideal time is stopped, because it may never end.
LIMIT = 10

SCHEDULES = {
    "queue": "machines take tasks from one queue. The vectors of a finished task are safe",
    "shards": "each machine has its own tasks, as with `embed --shard I/N`, and resumes them after a failure",
    "job": "one queue, but a lost machine also repeats its finished tasks of unfinished jobs (see --rows-per-job)",
}


@dataclass(frozen=True)
class Cluster:
    n_machines: int
    tokens_per_second: float
    slow_share: float = 0.0
    slow_speed: float = 1.0
    # The mean time between two failures of one machine.
    mtbf_s: float = math.inf
    # The time until a lost machine is noticed, and from then on the time until its replacement computes.
    detect_s: float = 0.0
    replace_s: float = 0.0
    # The fixed time of a task: scheduling, opening the input, completing the output.
    overhead_s: float = 0.0

    def speeds(self, rng):
        """Tokens per second of each machine."""
        n_slow = round(self.n_machines * self.slow_share)
        speeds = [self.slow_speed] * n_slow + [1.0] * (self.n_machines - n_slow)
        rng.shuffle(speeds)
        return [self.tokens_per_second * speed for speed in speeds]


@dataclass
class Run:
    """The time of a run, and the machine seconds of all machines: their sum is the time times the machines."""

    seconds: float = 0.0
    useful: float = 0.0
    slow: float = 0.0
    overhead: float = 0.0
    failures: float = 0.0
    tail: float = 0.0
    # How often each task was finished and not lost afterwards.
    done: list[int] = field(default_factory=list)

    @property
    def spent(self):
        return self.useful + self.slow + self.overhead + self.failures + self.tail


def task_tokens(n_documents, rows, mean, sigma, file_spread, rng):
    """The tokens of each task. Lengths of documents are log-normal, and their sums nearly normal.

    Documents of one task come from one file and are similar: the mean length of a task is log-normal, too, with the
    relative spread `file_spread`.
    """
    lengths = [rng.lognormvariate(0, sigma) for _ in range(SAMPLE)]
    relative = pstdev(lengths) / fmean(lengths)
    tokens = []
    for start in range(0, n_documents, rows):
        n = min(rows, n_documents - start)
        file = rng.lognormvariate(0, file_spread)
        tokens.append(n * file * max(0.1, rng.gauss(1, relative / math.sqrt(n))))
    scale = n_documents * mean / sum(tokens)
    return [scale * n for n in tokens]


class Simulation:
    """The events of one run: the end of a task, a failure, its detection, and the start of a replacement."""

    def __init__(self, tokens, cluster, schedule, tasks_per_job, rng):
        self.tokens, self.cluster, self.schedule, self.rng = tokens, cluster, schedule, rng
        n = cluster.n_machines
        self.speeds = cluster.speeds(rng)
        self.queues = [deque(range(len(tokens)))] * n
        if schedule == "shards":
            self.queues = [deque(range(machine, len(tokens), n)) for machine in range(n)]
        self.job = [task // (tasks_per_job or len(tokens)) for task in range(len(tokens))]
        self.open_tasks = [0] * (self.job[-1] + 1)
        for job in self.job:
            self.open_tasks[job] += 1
        self.n_open = len(tokens)
        # The finished tasks of each machine, and since when each idle machine has had no task.
        self.finished = [[] for _ in range(n)]
        self.idle_since = {}
        self.events, self.n_events, self.now = [], 0, 0.0
        self.run = Run(done=[0] * len(tokens))

    def times(self, machine, task):
        """The seconds of a task at the nominal speed, and those that the machine takes in addition."""
        useful = self.tokens[task] / self.cluster.tokens_per_second
        return useful, self.tokens[task] / self.speeds[machine] - useful

    def at(self, time, event, *arguments):
        self.n_events += 1
        heappush(self.events, (time, self.n_events, event, arguments))

    def start(self, machine):
        """Starts the next task of a machine. Failures have no memory, so the time to the next one is drawn here."""
        if not self.queues[machine]:
            self.idle_since.setdefault(machine, self.now)
            return
        self.run.tail += self.now - self.idle_since.pop(machine, self.now)
        task = self.queues[machine].popleft()
        seconds = sum(self.times(machine, task)) + self.cluster.overhead_s
        failure = math.inf if self.cluster.mtbf_s == math.inf else self.rng.expovariate(1 / self.cluster.mtbf_s)
        if failure < seconds:
            self.at(self.now + failure, self.fail, machine, task, self.now)
        else:
            self.at(self.now + seconds, self.finish, machine, task)

    def finish(self, machine, task):
        self.count(machine, task, 1)
        self.finished[machine].append(task)
        self.start(machine)

    def count(self, machine, task, sign):
        """Adds or removes a finished task."""
        useful, slow = self.times(machine, task)
        self.run.useful += sign * useful
        self.run.slow += sign * slow
        self.run.overhead += sign * self.cluster.overhead_s
        self.run.done[task] += sign
        self.open_tasks[self.job[task]] -= sign
        self.n_open -= sign

    def fail(self, machine, task, started):
        self.run.failures += self.now - started
        self.at(self.now + self.cluster.detect_s, self.detect, machine, task)
        self.at(self.now + self.cluster.detect_s + self.cluster.replace_s, self.replaced, machine, self.now)

    def detect(self, machine, task):
        lost = [task]
        if self.schedule == "job":
            for done in self.finished[machine]:
                if self.open_tasks[self.job[done]]:
                    self.count(machine, done, -1)
                    self.run.failures += sum(self.times(machine, done)) + self.cluster.overhead_s
                    lost.append(done)
        self.finished[machine] = []
        # Lost tasks are first in the queue, so that they do not lengthen the tail.
        self.queues[machine].extendleft(lost)
        for idle in list(self.idle_since):
            self.start(idle)

    def replaced(self, machine, failed):
        self.run.failures += self.now - failed
        self.start(machine)

    def simulate(self, limit_s):
        for machine in range(self.cluster.n_machines):
            self.start(machine)
        while self.n_open:
            self.now, _, event, arguments = heappop(self.events)
            if self.now > limit_s:
                return replace(self.run, seconds=math.inf)
            event(*arguments)
        # Machines that are being replaced at the end.
        for _, _, event, arguments in self.events:
            if event == self.replaced:
                self.run.failures += self.now - arguments[1]
        self.run.tail += sum(self.now - since for since in self.idle_since.values())
        self.run.seconds = self.now
        return self.run


def simulate(tokens, cluster, schedule="queue", seed=0, tasks_per_job=0, limit_s=math.inf):
    """Runs all tasks. `tasks_per_job` is 0 for one job, and the time of a run that reaches `limit_s` is infinite."""
    return Simulation(tokens, cluster, schedule, tasks_per_job, random.Random(seed)).simulate(limit_s)


def row(arguments, schedule, mtbf_hours, rows, rows_per_job):
    """One row of the table: the mean of several runs."""
    cluster = Cluster(
        n_machines=arguments.machines,
        tokens_per_second=arguments.tokens_per_second,
        slow_share=arguments.slow_share,
        slow_speed=arguments.slow_speed,
        mtbf_s=mtbf_hours * 3600,
        detect_s=arguments.detect_seconds,
        replace_s=arguments.replace_seconds,
        overhead_s=arguments.overhead_seconds,
    )
    total = arguments.documents * arguments.mean_tokens
    ideal = total / cluster.tokens_per_second / cluster.n_machines / 3600
    runs = []
    for run in range(arguments.runs):
        rng = random.Random(arguments.seed + run)
        tokens = task_tokens(
            arguments.documents, rows, arguments.mean_tokens, arguments.sigma, arguments.file_spread, rng
        )
        tasks_per_job, limit_s = math.ceil(rows_per_job / rows), LIMIT * ideal * 3600
        runs.append(simulate(tokens, cluster, schedule, arguments.seed + run, tasks_per_job, limit_s))
    minutes = rows * arguments.mean_tokens / cluster.tokens_per_second / 60
    hours = fmean(run.seconds for run in runs) / 3600
    cells = [schedule, f"{mtbf_hours:g} h", f"{rows:,}", f"{minutes:.1f}", f"{ideal:.1f}"]
    if schedule == "job":
        cells[0] += f", {rows_per_job:,} rows" if rows_per_job else ", all rows"
    if hours == math.inf:
        return [*cells, f"over {LIMIT * ideal:.0f}", f"over {LIMIT}", *["–"] * 4]
    spent = sum(run.spent for run in runs)
    lost = [sum(getattr(run, name) for run in runs) / spent for name in ["overhead", "slow", "tail", "failures"]]
    return [*cells, f"{hours:.1f}", f"{hours / ideal:.3f}", *[f"{100 * share:.1f} %" for share in lost]]


def check():
    """Asserts properties of the simulation that follow from its definition, and not from its code."""
    rng = random.Random(1)
    equal = [200_000.0] * 1200
    plain = Cluster(n_machines=40, tokens_per_second=1000)
    ideal = sum(equal) / 1000 / 40

    # Equal machines, equal tasks, no failures: the ideal time. One task more takes the time of one task more.
    for schedule in SCHEDULES:
        run = simulate(equal, plain, schedule)
        assert math.isclose(run.seconds, ideal), (schedule, run.seconds, ideal)
        assert run.tail == run.slow == run.failures == run.overhead == 0, run
        assert math.isclose(simulate([*equal, 200_000.0], plain, schedule).seconds, ideal + 200)
    assert math.isclose(simulate(equal, replace(plain, overhead_s=10)).seconds, ideal + 30 * 10)

    # With shards, the slowest machine determines the time. With a queue, all machines end within one task of it.
    slow = replace(plain, slow_share=0.05, slow_speed=0.6)
    assert math.isclose(simulate(equal, slow, "shards").seconds, ideal / 0.6)
    capacity = 1000 * (38 + 2 * 0.6)
    seconds = simulate([2000.0] * 120_000, slow).seconds
    assert 0 <= seconds - sum(equal) / capacity <= 2 / 0.6, seconds

    # Sums of tasks have the mean, and the spread of a log-normal distribution. Greedy queues keep Graham's bound.
    tokens = task_tokens(4_000_000, 1000, 200, 0.9, 0, rng)
    assert math.isclose(sum(tokens), 200 * 4_000_000)
    expected = math.sqrt(math.exp(0.9**2) - 1) / math.sqrt(1000)
    assert abs(pstdev(tokens) / fmean(tokens) / expected - 1) < 0.1, pstdev(tokens) / fmean(tokens)
    uneven = task_tokens(1_000_050, 1000, 200, 0.9, 0.3, rng)
    assert len(uneven) == 1001
    assert simulate(uneven, plain).seconds <= sum(uneven) / 1000 / 40 + max(uneven) / 1000

    # With failures, every task is finished once, no time is lost from the accounts, and no run beats the ideal.
    failing = replace(slow, mtbf_s=3600, detect_s=180, replace_s=300, overhead_s=5)
    for schedule in SCHEDULES:
        for seed in range(5):
            run = simulate(uneven, failing, schedule, seed, tasks_per_job=50)
            assert set(run.done) == {1}, (schedule, seed)
            assert math.isclose(run.spent, run.seconds * 40), (run.spent, run.seconds * 40)
            assert math.isclose(run.useful, sum(uneven) / 1000), run.useful
            assert run.failures > 0 and run.useful / 40 < run.seconds
        assert run == simulate(uneven, failing, schedule, 4, tasks_per_job=50), "a seed gives two results"

    # The mean of the hours grows with the rate of failures, and with what a failure loses.
    for schedule in SCHEDULES:
        means = []
        for mtbf_s in [math.inf, 30 * 24 * 3600, 12 * 3600, 3600]:
            cluster = replace(failing, mtbf_s=mtbf_s)
            means.append(fmean(simulate(uneven, cluster, schedule, seed, 50).seconds for seed in range(20)))
        assert means == sorted(means), (schedule, means)
    means = [
        fmean(simulate(uneven, failing, schedule, seed, jobs).seconds for seed in range(20))
        for schedule, jobs in [("queue", 0), ("job", 50), ("job", 200)]
    ]
    assert means[0] < means[1] < means[2], means

    # A task of d seconds that starts again after each failure takes (1 / rate + down) (e^(rate d) - 1) on average.
    # The same is true of a job that is lost as a whole. If other machines are idle, they wait for the detection only.
    one = replace(plain, n_machines=1, mtbf_s=1000, detect_s=60, replace_s=40)
    task = simulate([200_000.0] * 40_000, one).seconds / 40_000
    job = fmean(simulate([40_000.0] * 5, one, "job", seed).seconds for seed in range(20_000))
    spare = replace(one, n_machines=20, replace_s=1e6)
    detected = fmean(simulate([200_000.0], spare, "queue", seed).seconds for seed in range(20_000))
    for seconds, down in [(task, 100), (job, 100), (detected, 60)]:
        expected = (1000 + down) * math.expm1(200 / 1000)
        assert abs(seconds / expected - 1) < 0.02, (seconds, expected)

    # A machine whose finished tasks are not safe cannot finish a job that is much longer than its time to a failure.
    assert simulate(equal, one, "job", limit_s=10 * sum(equal) / 1000).seconds == math.inf
    print("all checks passed")


def numbers(convert):
    return lambda text: [convert(part) for part in text.split(",")]


def main():
    schedules = "\n".join(f"  {name}: {text}" for name, text in SCHEDULES.items())
    parser = argparse.ArgumentParser(
        description=f"{__doc__}\nSchedules:\n{schedules}", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--check", action="store_true", help="check properties of the simulation, and print no table")
    add("--documents", type=int, default=1_000_000_000)
    add("--mean-tokens", type=float, default=200, help="mean length of a document")
    add("--sigma", type=float, default=0.9, help="standard deviation of the logarithm of a length")
    add("--file-spread", type=float, default=0.2, help="relative spread of the mean length of a task")
    add("--rows", type=numbers(int), default=[2_000, 10_000, 25_000, 100_000, 500_000], help="rows per task")
    add("--machines", type=int, default=200)
    add("--tokens-per-second", type=float, default=8354, help="of one machine")
    add("--slow-share", type=float, default=0.05, help="share of slow machines")
    add("--slow-speed", type=float, default=0.6, help="speed of a slow machine, relative to the others")
    add("--mtbf-hours", type=numbers(float), default=[720, 12], help="mean time between failures of one machine")
    add("--detect-seconds", type=float, default=180, help="time until a lost machine is noticed")
    add("--replace-seconds", type=float, default=300, help="time from then on until its replacement computes")
    add("--overhead-seconds", type=float, default=5, help="fixed time of a task")
    add("--schedule", type=numbers(str), default=["queue"], help="schedules to compare: queue, shards, job")
    add("--rows-per-job", type=numbers(int), default=[0], help="rows of a job, or 0 for one job with all rows")
    add("--runs", type=int, default=3, help="runs of which the mean is shown")
    add("--seed", type=int, default=0)
    arguments = parser.parse_args()
    unknown = set(arguments.schedule) - set(SCHEDULES)
    if unknown:
        parser.error(f"expected schedules from {', '.join(SCHEDULES)}, got {', '.join(sorted(unknown))}")
    if arguments.check:
        return check()
    head = ["schedule", "failure every", "rows per task", "minutes per task", "ideal hours", "hours", "ratio"]
    head += [f"lost to {cause}" for cause in ["overhead", "slow machines", "tail", "failures"]]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for schedule in arguments.schedule:
        for rows_per_job in arguments.rows_per_job if schedule == "job" else [0]:
            for mtbf_hours in arguments.mtbf_hours:
                for rows in arguments.rows:
                    cells = row(arguments, schedule, mtbf_hours, rows, rows_per_job)
                    print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
