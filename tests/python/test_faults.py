"""What a killed, interrupted or starved run leaves behind, and that the same command goes on from there.

One process pays for importing torch and loading the model; each run is a fork of it that has computed nothing yet. A
step is a call that makes something durable: opening for writing, syncing, renaming, writing a line of the manifest.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING_LINES

pytestmark = pytest.mark.slow
SEED = 90125
DOCUMENTS, PART_TOKENS = 2000, 500

DRIVER = """
import json, os, resource, select, signal, sys, time
import torch, transformers, pyarrow.parquet, tokenizers
import xentrs.corpus, xentrs.corpus.journal as journal, xentrs.durable, xentrs.models
from xentrs.cli import main
from xentrs.report.progress import Progress

part_tokens, model = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
runner = xentrs.models.load_model(model, dtype="float32")
xentrs.models.load_model = lambda *arguments: runner
real_resolve = xentrs.corpus.resolve_settings
xentrs.corpus.resolve_settings = lambda runner, **options: real_resolve(runner, part_tokens=part_tokens, **options)
started, told = os.pipe()
ENDED = os.WEXITED | os.WNOHANG | os.WNOWAIT

def child(order):
    os.setpgid(0, 0)
    # A shell starts background jobs with SIGINT ignored, and children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 2)
    os.dup2(log, 1)
    steps = [0]

    def stepping(real):
        def step(*arguments, **options):
            steps[0] += 1
            if steps[0] == order.get("kill_step"):
                os.kill(os.getpid(), 9)
            return real(*arguments, **options)
        return step

    for module, name in ((os, "open"), (os, "fsync"), (os, "replace"), (journal, "append_line")):
        setattr(module, name, stepping(getattr(module, name)))
    real_started = Progress.part_started

    def part_started(self, *arguments):
        os.write(told, b"x")
        real_started(self, *arguments)
        for path in order.get("remove", ()):
            if os.path.exists(path):
                os.unlink(path)
        for path, text in order.get("change", {}).items():
            with open(path, "w") as file:
                file.write(text)

    Progress.part_started = part_started
    if "file_bytes" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    code = main(["score", *order["arguments"]])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)

def parts(order):
    try:
        with open(os.path.join(order["folder"], "manifest.jsonl"), "rb") as file:
            return file.read().count(b"\\n")
    except OSError:
        return 0

for line in sys.stdin:
    order = json.loads(line)
    process = os.fork()
    if process == 0:
        try:
            child(order)
        finally:
            os._exit(70)
    seen = None
    if "signal" in order:
        # Not before a part is begun; a run that has nothing to do never begins one.
        while not select.select([started], [], [], 0.05)[0] and not os.waitid(os.P_PID, process, ENDED):
            pass
        time.sleep(order["seconds"])
        seen = parts(order)
        os.kill(process, order["signal"])
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    os.set_blocking(started, False)
    try:
        while os.read(started, 65536):
            pass
    except BlockingIOError:
        pass
    os.set_blocking(started, True)
    answer = {"code": code, "seen": seen, "parts": parts(order), "log": open(order["log"]).read()}
    print(json.dumps(answer), flush=True)
"""


class Runs:
    """Runs of the command line, one after the other."""

    def __init__(self, process: subprocess.Popen[str], model: Path, base: Path) -> None:
        self.process, self.model, self.base = process, model, base

    def __call__(self, inputs: Any, folder: Path, **order: Any) -> dict[str, Any]:
        names = [str(path) for path in (inputs if isinstance(inputs, list) else [inputs])]
        arguments = [*names, "--model", str(self.model), "-o", str(folder), "--threads", "1", "--quiet"]
        order.update(arguments=arguments, folder=str(folder), log=str(self.base / "log"))
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, "the driver died"
        found: dict[str, Any] = json.loads(answer)
        assert "Traceback" not in found["log"], found["log"]
        return found


@pytest.fixture(scope="module")
def runs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(PART_TOKENS), str(tiny_model)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip
    yield Runs(process, tiny_model, tmp_path_factory.mktemp("runs"))
    assert process.stdin is not None
    process.stdin.close()
    process.wait()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents with a few bad lines among them."""
    generator = random.Random(SEED)
    words = " ".join(TRAINING_LINES).split()
    lines = [
        "{broken" if place % 97 == 0 else json.dumps({"text": " ".join(generator.choices(words, k=place % 5))})
        for place in range(DOCUMENTS)
    ]
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(runs: Runs, corpus: Path) -> dict[str, bytes]:
    """The files of an uninterrupted run."""
    folder = runs.base / "whole"
    found = runs(corpus, folder)
    assert found["code"] == 3, found["log"]  # some lines are bad
    assert found["parts"] > 15
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the timings."""
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name != "timings.json"}


def check_finished(runs: Runs, inputs: Any, folder: Path, whole: dict[str, bytes], where: str, code: int = 3) -> None:
    """The same command, left alone, brings the folder to the bytes of the uninterrupted run."""
    found = runs(inputs, folder)
    assert found["code"] == code, f"{where}: {found['log']}"
    held = contents(folder)
    assert sorted(held) == sorted(whole), where
    assert [name for name in held if held[name] != whole[name]] == [], where


def test_killed_25_times_and_resumed(runs: Runs, corpus: Path, whole: dict[str, bytes]) -> None:
    """At random steps and at random moments; whenever a run gets to its end, the next one begins."""
    generator = random.Random(SEED)
    kills, folders = 0, 0
    folder = runs.base / "killed-0"
    while kills < 25:
        where = f"kill {kills} in {folder.name}, seed {SEED}"
        if generator.random() < 0.6:
            found = runs(corpus, folder, kill_step=generator.randint(1, 60))
        else:
            found = runs(corpus, folder, signal=9, seconds=generator.uniform(0, 0.4))
        if found["code"] == -signal.SIGKILL:
            kills += 1
            assert not (folder / "summary.json").exists() or found["parts"] == whole["manifest.jsonl"].count(b"\n")
            continue
        assert found["code"] == 3, f"{where}: {found['log']}"
        check_finished(runs, corpus, folder, whole, where)
        folders += 1
        folder = runs.base / f"killed-{folders}"
    check_finished(runs, corpus, folder, whole, f"last of seed {SEED}")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_stop_a_run_that_resumes(
    runs: Runs, corpus: Path, whole: dict[str, bytes], number: int, code: int
) -> None:
    generator = random.Random(SEED + number)
    folder = runs.base / f"signal-{number}"
    stopped = 0
    for _ in range(3):
        found = runs(corpus, folder, signal=int(number), seconds=generator.uniform(0, 0.2))
        if found["code"] == code:
            stopped += 1
            assert "the same command goes on where it stopped" in found["log"]
            assert found["parts"] <= found["seen"] + 1  # at most what was just being written
            assert not list(folder.glob("*.tmp-*"))
            assert not (folder / "summary.json").exists()
        else:
            assert found["code"] == 3, found["log"]
    assert stopped >= 1
    check_finished(runs, corpus, folder, whole, f"seed {SEED + number}")


@pytest.mark.parametrize("file_bytes", [800, 1500, 3500, 9000])
def test_no_more_room(runs: Runs, corpus: Path, whole: dict[str, bytes], file_bytes: int) -> None:
    """A file that may not grow fails as one on a full disk does: at the start, in a table, in the manifest."""
    folder = runs.base / f"small-{file_bytes}"
    found = runs(corpus, folder, file_bytes=file_bytes)
    assert found["code"] == 1, found["log"]
    assert "File too large" in found["log"]
    assert not list(folder.glob("*.tmp-*"))
    assert not (folder / "summary.json").exists()
    check_finished(runs, corpus, folder, whole, str(file_bytes))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of so many bytes, which can grow."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(byte_count: int) -> Path:
        options = f"size={byte_count}" + (",remount" if os.path.ismount(folder) else "")
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no right to mount a file system of a given size")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("byte_count", [8192, 65536, 200_000])
def test_full_disk(
    runs: Runs, corpus: Path, whole: dict[str, bytes], byte_count: int, small_disk: Callable[[int], Path]
) -> None:
    folder = small_disk(byte_count) / "run"
    found = runs(corpus, folder)
    assert found["code"] == 1, found["log"]
    assert "No space left on device" in found["log"]
    assert not list(folder.glob("*.tmp-*"))
    assert not (folder / "summary.json").exists()
    small_disk(64 << 20)
    check_finished(runs, corpus, folder, whole, str(byte_count))


@pytest.fixture
def two_inputs(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / "one.jsonl", tmp_path / "two.jsonl"]
    for path in paths:
        path.write_text("".join(json.dumps({"text": f"The fox {place}"}) + "\n" for place in range(600)))
    return paths


@pytest.mark.parametrize("target", [0, 1])
@pytest.mark.parametrize("fault", ["vanishes", "changes"])
def test_input_that_goes_away_or_changes_meanwhile(
    runs: Runs, two_inputs: list[Path], tmp_path: Path, fault: str, target: int
) -> None:
    """No part of another text than the one that was hashed is kept: with the old text back the run goes on."""
    assert runs(two_inputs, tmp_path / "whole")["code"] == 0
    whole = contents(tmp_path / "whole")
    path, text = two_inputs[target], two_inputs[target].read_text()
    changed = {"remove": [str(path)]} if fault == "vanishes" else {"change": {str(path): text.replace("fox", "dog")}}
    found = runs(two_inputs, tmp_path / "run", **changed)
    assert found["code"] == 1, found["log"]
    assert f"{path} {'vanished' if fault == 'vanishes' else 'changed'} during the run" in found["log"]
    path.write_text(text)
    check_finished(runs, two_inputs, tmp_path / "run", whole, f"{fault} {target}", code=0)


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "swap"])
def test_corrupt_parts_are_made_again(runs: Runs, corpus: Path, whole: dict[str, bytes], damage: str) -> None:
    generator = random.Random(SEED)
    folder = runs.base / f"corrupt-{damage}"
    shutil.copytree(runs.base / "whole", folder)
    for number in (0, 7, 12):
        path = folder / f"{generator.choice(('documents', 'tokens'))}-{number:05d}.parquet"
        data = bytearray(path.read_bytes())
        if damage == "flip":
            data[generator.randrange(len(data))] ^= 1 << generator.randrange(8)
            path.write_bytes(data)
        elif damage == "truncate":
            path.write_bytes(data[: generator.randrange(len(data))])
        elif damage == "delete":
            path.unlink()
        else:
            other = folder / path.name.replace(f"{number:05d}", f"{number + 1:05d}")
            path.write_bytes(other.read_bytes())
            other.write_bytes(data)
    check_finished(runs, corpus, folder, whole, f"{damage}, seed {SEED}")


def test_two_processes_on_one_folder(runs: Runs, corpus: Path, whole: dict[str, bytes]) -> None:
    import fcntl

    folder = runs.base / "locked"
    runs(corpus, folder, kill_step=40)
    before = contents(folder)
    with (folder / ".lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = runs(corpus, folder)
        assert found["code"] == 2
        assert "another process is writing this RUN" in found["log"]
        assert contents(folder) == before
    check_finished(runs, corpus, folder, whole, "after the other one ended")
