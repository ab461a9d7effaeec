"""The machine: what its processor is, and which of its cores a comparison runs on."""

import os
import pathlib
from dataclasses import dataclass

FLAGS = ["avx2", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni", "amx_bf16", "amx_int8"]
"""What matters to matrix products, as Linux names it."""


@dataclass(frozen=True)
class Machine:
    """The processor."""

    cpu: str
    flags: list[str]
    cores: int


def describe() -> Machine:
    """This machine."""
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    info = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = info["flags"].split()
    return Machine(info["model name"], [flag for flag in FLAGS if flag in flags], len(cores()))


def cores() -> list[int]:
    """One hardware thread of each core that this process may run on. Some virtual machines do not
    tell which threads have a core in common; there, each thread counts as a core."""
    first: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        siblings = pathlib.Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        first.setdefault(siblings.read_text() if siblings.exists() else str(cpu), cpu)
    return list(first.values())


def pin(threads: int) -> None:
    """Keeps this process, and those that it starts, on as many cores as there are threads."""
    available = cores()
    if threads > len(available):
        raise SystemExit(f"--threads {threads}: this process may use {len(available)} cores")
    os.sched_setaffinity(0, available[:threads])
