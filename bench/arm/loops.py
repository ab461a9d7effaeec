"""Counts the instructions of the inner loops of the matrix multiplications for ARM, and estimates their cycles.

    python bench/arm/loops.py [--mca PROGRAM] FILE.s ...

The files are the assembly of the kernels crate. Of each kernel and kernel set, the loop with the most multiplications is
counted, which is the loop of the largest tile. With `--mca`, the program llvm-mca estimates its cycles.
"""

import argparse
import re
import subprocess

MULTIPLICATIONS = re.compile(r"(fmla|fmul|mla|sdot|smlal2?|smull2?|bfmlal[bt])$")
BRANCH = re.compile(r"(?:b|b\.\w+|cbn?z|tbn?z)\s.*?(\.L\w+)$")
KERNELS = {
    "F32Kernel": "f32",
    "WidenedKernel": "f32 · bf16 weights",
    "Bf16Kernel": "bf16",
    "BytesKernel": "8-bit activations",
    "Int8Kernel": "16-bit activations",
}
# The functions of the sets have the same name, and are numbered in the order of `instruction_sets!`.
SETS = {"": "neon", "s_": "neon-dot", "s0_": "neon-bf16"}
CPUS = ["apple-m1", "neoverse-n1", "neoverse-v1", "neoverse-n2"]


def functions(path):
    """The name and the lines of each function."""
    name, lines = None, []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if label := re.match(r"(_\w+):", line):
                name, lines = label[1], []
            elif line.startswith(".Lfunc_end"):
                if name:
                    yield name, lines
                name = None
            elif name:
                lines.append(line.strip())


def loops(lines):
    """The instructions of each loop that contains no other loop."""
    labels, instructions, found = {}, [], []
    for line in lines:
        if label := re.match(r"(\.L\w+):", line):
            labels[label[1]] = len(instructions)
        elif line and line[0].isalpha():
            instructions.append(line)
            target = BRANCH.match(line)
            if target and target[1] in labels:
                found.append((labels[target[1]], len(instructions)))
    for start, end in found:
        if not any(start <= other[0] and other[1] <= end and other != (start, end) for other in found):
            yield instructions[start:end]


def count(loop):
    """Multiplications, loads, other vector instructions, instructions of the loop itself, and accesses to the stack."""
    operations = [line.split()[0] for line in loop]
    multiplications = sum(bool(MULTIPLICATIONS.match(op)) for op in operations)
    loads = sum(op.startswith("ld") for op in operations)
    spills = sum("[sp" in line or "[x29" in line for line in loop)
    vector = sum(
        bool(re.search(r"\sv\d", line)) and not MULTIPLICATIONS.match(op) and not op.startswith(("ld", "st"))
        for op, line in zip(operations, loop)
    )
    return multiplications, loads, vector, len(loop) - multiplications - loads - vector, spills


def cycles(program, cpu, loop):
    """Cycles of one iteration."""
    text = "\n".join(line for line in loop if not BRANCH.match(line)) + "\n"
    command = [program, "-mtriple=aarch64", f"-mcpu={cpu}", "-mattr=+dotprod,+bf16", "-iterations=1000"]
    output = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout
    return int(re.search(r"Total Cycles:\s+(\d+)", output)[1]) / 1000


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mca")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    rows = {}
    for path in args.files:
        for name, lines in functions(path):
            symbol = re.search(r"InstructionSet3run(s\d*_)?13with_features.*4gemm14MultiplyPanels.*?\d(\w+?Kernel)E", name)
            kernel = next((k for k in KERNELS if symbol and symbol[2].endswith(k)), None)
            if kernel:
                loop = max(loops(lines), key=lambda loop: count(loop)[0])
                rows[KERNELS[kernel], SETS[symbol[1] or ""]] = loop
    header = ["kernel", "set", "multiplications", "loads", "other vector", "loop", "stack", "share"]
    header += CPUS if args.mca else []
    print("| " + " | ".join(header) + " |")
    print("|---|---|" + "---:|" * (len(header) - 2))
    for (kernel, kernel_set), loop in sorted(rows.items()):
        counts = count(loop)
        cells = [kernel, f"`{kernel_set}`", *counts, f"{counts[0] / len(loop):.1%}"]
        if args.mca:
            cells += [f"{cycles(args.mca, cpu, loop):.0f}" for cpu in CPUS]
        print("| " + " | ".join(map(str, cells)) + " |")


main()
