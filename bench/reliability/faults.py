"""Faults of the machine: a full disk, files that cannot be read, files that shrink, and little address space."""

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import tempfile

import client
from outcome import Unavailable
from server import MIB, NotStarted, Server, describe_exit, last_line, run

N_TEXTS = 4000


def lines(n):
    return "".join(json.dumps({"text": f"text number {i}"}) + "\n" for i in range(n)).encode()


def disk_full(args, out):
    """The disk fills up while `embed` writes: an error that names the file and the cause, and no damaged file."""
    stdin = lines(N_TEXTS)
    if os.geteuid() == 0:
        for name in ("out.jsonl", "out.npy", "out.safetensors", "out.arrow", "out.parquet"):
            with small_disk(1) as folder:
                out.threw(f"{N_TEXTS} texts with --output {name} on a disk of 1 MiB")
                ended = run(args.program, "embed", "--output", f"{folder}/{name}", stdin=stdin)
                judge_full(out, ended, folder, name)
        full_folder(args, out, stdin)
        full_standard_output(args, out, stdin)
    else:
        out.saw("not root, so no small disk is mounted: only the limit of file sizes is used")
    with tempfile.TemporaryDirectory() as folder:
        out.threw(f"{N_TEXTS} texts with --output out.jsonl, files limited to 1 MiB")
        ended = run(args.program, "embed", "--output", f"{folder}/out.jsonl", stdin=stdin,
                    preexec_fn=limit(resource.RLIMIT_FSIZE, MIB))
        judge_full(out, ended, folder, "out.jsonl", cause="File too large")


def judge_full(out, ended, folder, name, cause="No space left on device"):
    out.check(ended.code == 1, f"{ended.describe()}")
    out.check(name in ended.errors and cause in ended.errors, "the error names the file and the cause")
    left = sorted(os.listdir(folder))
    out.check(name not in left, f"no file {name}; left: {left or 'nothing'}")
    out.check("panicked" not in ended.errors, "no panic")


def full_folder(args, out, stdin):
    """--output-dir on a full disk. When the disk has room again, --resume completes the run."""
    with small_disk(2) as folder, tempfile.TemporaryDirectory() as other:
        source = f"{other}/texts.jsonl"
        with open(source, "wb") as file:
            file.write(stdin)
        flags = ["--output-dir", f"{folder}/vectors", "--shard-rows", "500", "--output-format", "npy", source]
        out.threw(f"{N_TEXTS} texts with --output-dir on a disk of 2 MiB")
        ended = run(args.program, "embed", "--quiet", *flags)
        out.check(ended.code == 1 and "No space left on device" in ended.errors, ended.describe())
        subprocess.run(["mount", "-o", "remount,size=64m", folder], check=True)
        ended = run(args.program, "embed", "--quiet", "--resume", *flags)
        out.check(ended.code == 0, f"with more room and --resume: {ended.describe()}")
        whole = f"{other}/vectors"
        flags[1] = whole
        run(args.program, "embed", "--quiet", *flags)
        out.check(contents(f"{folder}/vectors") == contents(whole), "the files are those of an undisturbed run")


def contents(folder):
    """The bytes of the vectors in a folder."""
    found = {}
    for name in sorted(os.listdir(folder)):
        if name.endswith(".npy"):
            with open(f"{folder}/{name}", "rb") as file:
                found[name] = file.read()
    return found


def full_standard_output(args, out, stdin):
    out.threw("standard output is /dev/full, and a file on a full disk")
    with open("/dev/full", "wb") as full:
        ended = run(args.program, "embed", stdin=stdin, output=full)
        out.check(ended.code == 1 and "No space left" in ended.errors, ended.describe())
    with small_disk(1) as folder, open(f"{folder}/out", "wb") as full:
        ended = run(args.program, "embed", stdin=stdin, output=full)
        out.check(ended.code == 1 and "No space left" in ended.errors, ended.describe())


@contextlib.contextmanager
def small_disk(n_mib):
    """A folder that holds `n_mib` MiB."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={n_mib}m", "tmpfs", folder],
                                 stderr=subprocess.PIPE)
        if mounted.returncode:
            raise Unavailable(f"cannot mount a tmpfs: {last_line(mounted.stderr.decode())}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def limit(kind, value):
    """A function that limits a resource of the child. SIGXFSZ is ignored, so that a write fails instead."""
    def apply():
        resource.setrlimit(kind, (value, value))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    return apply


def read_errors(args, out):
    """Files of a model that are missing, special, unreadable or cut off: an error that names the file, in seconds."""
    source = f"{args.fixtures}/models/base"
    with open(f"{source}/model.safetensors", "rb") as file:
        weights = file.read()
    header = 8 + int.from_bytes(weights[:8], "little")
    lengths = [0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(weights) // 2, len(weights) - 1]
    damages = [(f"model.safetensors cut off after {n} of {len(weights)} bytes", "model.safetensors", weights[:n])
               for n in lengths]
    damages += [
        ("a header of 2^64 - 1 bytes", "model.safetensors", b"\xff" * 8 + weights[8:]),
        ("a header of 2^40 bytes", "model.safetensors", (1 << 40).to_bytes(8, "little") + weights[8:]),
        ("a header of nested lists", "model.safetensors", (100_000).to_bytes(8, "little") + b"[" * 100_000),
        ("random bytes", "model.safetensors", bytes(range(256)) * 1000),
        ("model.safetensors is a folder", "model.safetensors", "folder"),
        ("model.safetensors is a FIFO", "model.safetensors", "fifo"),
        ("model.safetensors is missing", "model.safetensors", None),
        ("a link to nothing", "model.safetensors", "/nonexistent"),
        ("a link to itself", "model.safetensors", "model.safetensors"),
        ("a link to /dev/null", "model.safetensors", "/dev/null"),
        ("a link to /dev/zero", "model.safetensors", "/dev/zero"),
        ("a read error (a link to /proc/self/mem)", "model.safetensors", "/proc/self/mem"),
        ("config.json is a FIFO", "config.json", "fifo"),
        ("config.json is a folder", "config.json", "folder"),
        ("config.json is a link to /dev/zero", "config.json", "/dev/zero"),
        ("config.json is empty", "config.json", b""),
        ("config.json is nested lists", "config.json", b"[" * 100_000),
        ("tokenizer.json is missing", "tokenizer.json", None),
        ("tokenizer.json is a FIFO", "tokenizer.json", "fifo"),
        ("tokenizer.json is a read error", "tokenizer.json", "/proc/self/mem"),
        ("tokenizer.json is cut off", "tokenizer.json", read(f"{source}/tokenizer.json")[:10_000]),
    ]
    out.threw(f"{len(damages)} damaged copies of a model with `embed`")
    for name, file, damage in damages:
        if not args.only or args.only in name:
            damaged_model(args, out, source, name, file, damage)
    cut_off_gguf(args, out)
    unreadable(args, out, source)
    unreadable_input(args, out)


def damaged_model(args, out, source, name, file, damage):
    """Embeds with a copy of the model whose `file` is replaced."""
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        shutil.copytree(source, model)
        replace(f"{model}/{file}", damage)
        ended = run(args.program, "embed", "--model", model, stdin=lines(1), timeout=15,
                    preexec_fn=limit(resource.RLIMIT_AS, 8192 * MIB))
        judge_error(out, name, ended, file)


def replace(path, damage):
    """Replaces a file by nothing, by bytes, or by a folder, a FIFO or a link."""
    os.remove(path)
    if damage == "folder":
        os.mkdir(path)
    elif damage == "fifo":
        os.mkfifo(path)
    elif isinstance(damage, str):
        os.symlink(damage, path)
    elif damage is not None:
        with open(path, "wb") as file:
            file.write(damage)


def judge_error(out, name, ended, file):
    is_clear = ended.code == 1 and file in ended.errors and "panicked" not in ended.errors
    is_one_line = len([line for line in ended.errors.splitlines() if line.startswith("error: ")]) == 1
    out.check(is_clear and is_one_line, f"{name}: {ended.describe()}")


def cut_off_gguf(args, out):
    """A GGUF file that ends early."""
    whole = read(f"{args.fixtures}/models/gguf-q8-0/model.gguf")
    for n in (0, 4, 8, 24, 1000, 20_000, len(whole) // 2, len(whole) - 1):
        with tempfile.TemporaryDirectory() as folder:
            with open(f"{folder}/model.gguf", "wb") as file:
                file.write(whole[:n])
            ended = run(args.program, "embed", "--model", f"{folder}/model.gguf", stdin=lines(1), timeout=15)
            judge_error(out, f"model.gguf cut off after {n} of {len(whole)} bytes", ended, "model.gguf")


def unreadable(args, out, source):
    """A file without permission to read. Root may read every file, so the command runs as another user."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        shutil.copytree(source, f"{folder}/model")
        os.chmod(f"{folder}/model/model.safetensors", 0)
        user = {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}
        try:
            ended = run(args.program, "embed", "--model", f"{folder}/model", stdin=lines(1), **user)
        except OSError as error:
            out.saw(f"the program cannot be run as another user: {error}")
            return
        judge_error(out, "model.safetensors without permission", ended, "model.safetensors")
        out.check("Permission denied" in ended.errors, "the error names the cause")


def unreadable_input(args, out):
    """Input files that cannot be read."""
    with tempfile.TemporaryDirectory() as folder:
        os.mkdir(f"{folder}/texts.jsonl")
        os.symlink("/proc/self/mem", f"{folder}/broken.jsonl")
        for suffix in ("parquet", "jsonl.gz", "jsonl.zst"):
            with open(f"{folder}/damaged.{suffix}", "wb") as file:
                magic = {"parquet": b"PAR1", "jsonl.gz": b"\x1f\x8b\x08\0", "jsonl.zst": b"\x28\xb5\x2f\xfd"}[suffix]
                file.write(magic + b"\x07" * 1000)
        for name in ("texts.jsonl", "broken.jsonl", "damaged.parquet", "damaged.jsonl.gz", "damaged.jsonl.zst",
                     "missing.jsonl"):
            ended = run(args.program, "embed", f"{folder}/{name}", timeout=15)
            judge_error(out, f"the input {name}", ended, name)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def truncated_map(args, out):
    """The model's file is truncated, or replaced, while a server runs, with and without --preload."""
    for name in ("base/model.safetensors", "gguf-q8-0/model.gguf"):
        for flags in (["--preload"], []):
            for damage in ("replaced by another file of the same name", "truncated"):
                served_through(args, out, name, damage, flags)
    command_through(args, out)


def served_through(args, out, name, damage, flags):
    """Damages the file of a running server. Texts with new tokens then need token embeddings."""
    with tempfile.TemporaryDirectory() as folder:
        source, file_name = os.path.split(name)
        model = f"{folder}/model"
        shutil.copytree(f"{args.fixtures}/models/{source}", model)
        path = f"{model}/{file_name}"
        texts = ["one text", "1234567890", "some other words, and more of them", "\u4e2d\u6587"]
        with Server(args.program, "--model-path", model, *flags) as undisturbed:
            expected = vectors(undisturbed.port, texts)
        with Server(args.program, "--model-path", model, *flags) as server:
            client.embed(server.port, "one text")
            out.threw(f"{file_name} is {damage}, server {' '.join(flags) or 'without --preload'}")
            if damage == "truncated":
                os.truncate(path, 0)
            else:
                with open(f"{path}.new", "wb") as file:
                    file.write(b"other bytes")
                os.replace(f"{path}.new", path)
            after = vectors(server.port, texts)
            judge_map(out, damage, flags, server, after, expected)


def judge_map(out, damage, flags, server, after, expected):
    try:
        server.process.wait(2)
    except subprocess.TimeoutExpired:
        out.check(after == expected, "the server goes on with the same vectors")
        return
    code = server.process.returncode
    text = f"the server ended: {describe_exit(code)}; message: {last_line(server.log())[:120]}"
    if damage == "truncated" and not flags and code == -signal.SIGBUS:
        out.limit(text)
    else:
        out.check(False, text)


def vectors(port, texts):
    reply = client.embed(port, texts, timeout=10)
    body = reply.json()
    return [row["embedding"] for row in body["data"]] if reply.status == 200 else reply.describe()


def command_through(args, out):
    """The file is truncated between the loading and the first text of `embed --preload`."""
    with tempfile.TemporaryDirectory() as folder:
        model = f"{folder}/model"
        shutil.copytree(f"{args.fixtures}/models/base", model)
        command = [args.program, "embed", "--preload", "--model", model]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        process.stdin.write(lines(1))
        process.stdin.flush()
        process.stdout.readline()
        out.threw("model.safetensors is truncated while `embed --preload` waits for its second line")
        os.truncate(f"{model}/model.safetensors", 0)
        output, errors = process.communicate(b'{"text": "1234567890 and other words"}\n', 30)
        is_right = process.returncode == 0 and len(output.splitlines()) == 1
        out.check(is_right, f"{describe_exit(process.returncode)}: {last_line(errors.decode())[:120]}")


def address_space(args, out):
    """`ulimit -v`: the command and the server work, or end with an error; they never hang."""
    model = ["--model", args.model] if args.model else []
    for n_mib in (32, 64, 128, 192, 256, 384, 512, 1024, 2048, 4096):
        started = run(args.program, "--version", preexec_fn=limit(resource.RLIMIT_AS, n_mib * MIB))
        if started.code != 0:
            out.saw(f"{n_mib} MiB are too few for the system to start the program: {describe_exit(started.code)}")
            continue
        ended = run(args.program, "embed", *model, stdin=lines(200), preexec_fn=limit(resource.RLIMIT_AS, n_mib * MIB))
        judge_memory(out, f"embed with {n_mib} MiB", ended.code, ended.errors, ended.seconds)
        serve_in(args, out, model, n_mib)


def serve_in(args, out, model, n_mib):
    name = f"serve with {n_mib} MiB"
    model = ["--model-path", args.model] if model else []
    try:
        server = Server(args.program, *model, prepare=limit(resource.RLIMIT_AS, n_mib * MIB))
    except NotStarted as error:
        if "SIGABRT" in str(error):
            out.limit(f"{name}: {error}")
        else:
            out.check("exit status 1" in str(error) and "error: " in str(error), f"{name}: {error}")
        return
    with server:
        reply = client.embed(server.port, [f"text number {i}" for i in range(200)])
        if server.is_alive():
            out.check(reply.status in (200, 429), f"{name}: {reply.describe()}")
        else:
            judge_memory(out, name, server.process.wait(), server.log(), reply.seconds)


def judge_memory(out, name, code, errors, seconds):
    """Success and an error message are right. An abort of the allocator is a limit."""
    text = f"{name}: {describe_exit(code)} after {seconds:.1f} s"
    if code != 0:
        text += f": {last_line(errors)[:160]}"
    if code == -signal.SIGABRT:
        out.limit(text)
    else:
        out.check(code == 0 or (code == 1 and "error: " in errors), text)
