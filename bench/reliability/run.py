"""Throws faults and hostile input at the finished program `qwen3-embed`, one scenario a command.

    python3 bench/reliability/run.py --list
    python3 bench/reliability/run.py SCENARIO [--program PATH] [--model DIR]
    python3 bench/reliability/run.py all

Linux only. Each scenario prints what it threw, what happened, and a verdict: PASS, FAIL, LIMIT (a limit of the program
that its documentation should name) or UNAVAILABLE (this machine cannot run the scenario). The exit status is 1 after a
FAIL. `all` leaves out the soak and the restarts unless --long is set. bench/RELIABILITY.md has the results.
"""

import argparse
import inspect
import os
import resource
import signal
import sys

import cgroup
import faults
import hostile
import load
import slow
from outcome import FAIL, Outcome, Unavailable

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

SCENARIOS = {
    "disk-full": faults.disk_full,
    "read-errors": faults.read_errors,
    "truncated-map": faults.truncated_map,
    "address-space": faults.address_space,
    "cgroup": cgroup.small_machine,
    "hostile-requests": hostile.requests,
    "hostile-texts": hostile.texts,
    "slow-clients": slow.slow_clients,
    "slow-readers": slow.slow_readers,
    "idle-connections": slow.idle_connections,
    "half-bodies": slow.half_bodies,
    "soak": load.soak,
    "restarts": load.restarts,
}
LONG = {"soak", "restarts"}


def main():
    args = parse_arguments()
    # The scenarios stop their servers when the script is told to end.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if args.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:18} {inspect.getdoc(scenario).splitlines()[0]}")
        return 0
    if not os.access(args.program, os.X_OK):
        print(f"{args.program} is not a program: build it with `cargo build --release`, or set --program")
        return 2
    names = [args.scenario]
    if args.scenario == "all":
        names = [name for name in SCENARIOS if args.long or name not in LONG]
    verdicts = {name: run(name, args) for name in names}
    if len(verdicts) > 1:
        for name, verdict in verdicts.items():
            print(f"{verdict:12} {name}")
    return int(FAIL in verdicts.values())


def run(name, args):
    """Runs one scenario and returns its verdict."""
    outcome = Outcome(name)
    try:
        SCENARIOS[name](args, outcome)
    except Unavailable as reason:
        return outcome.unavailable(reason)
    except Exception as error:
        outcome.check(False, f"the scenario itself failed: {error!r}")
        if args.scenario != "all":
            outcome.end()
            raise
    return outcome.end()


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="?", choices=[*SCENARIOS, "all"], help="see --list")
    parser.add_argument("--list", action="store_true", help="list the scenarios")
    parser.add_argument("--program", default=os.path.join(ROOT, "target/release/qwen3-embed"))
    parser.add_argument("--model", help="model folder or GGUF file for `cgroup`, `address-space` and `soak` "
                        "[default: the bundled model]")
    parser.add_argument("--long", action="store_true", help="`all` includes the soak and the restarts")
    parser.add_argument("--minutes", type=float, default=30, help="length of the soak [default: 30]")
    parser.add_argument("--load", type=float, default=0.8, help="load of the soak, as a share of capacity")
    parser.add_argument("--times", type=int, default=20, help="number of restarts [default: 20]")
    parser.add_argument("--tokens", type=int, default=32000, help="length of the long text of `cgroup`")
    parser.add_argument("--timeout", type=float, default=900, help="longest time for a request of `cgroup`, in s")
    parser.add_argument("--only", help="run only the cases of a scenario whose name contains this text")
    args = parser.parse_args()
    if not args.list and args.scenario is None:
        parser.error("name a scenario, or use --list")
    args.program = os.path.abspath(args.program)
    args.fixtures = os.path.join(ROOT, "fixtures")
    args.bundled = os.path.join(ROOT, "crates/qwen3-embed-demo/model")
    raise_file_limit()
    return args


def raise_file_limit():
    """Allows this process as many open files as the scenarios with many connections need."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, 40_000), max(hard, 40_000)))
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    sys.exit(main())
