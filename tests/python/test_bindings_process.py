"""Processes: fork, spawn, pools, exit, environment. Each test is a script, killed when it hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import xentrs as xe

PRELUDE = """
import os, signal, sys, threading, time
import numpy as np
import xentrs as xe
# A shell starts background jobs with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
logits = np.random.default_rng(0).normal(0, 3, (64, 5000)).astype(np.float32)
targets = np.arange(64)
def score():
    return xe.row_stats(logits, targets).nll.tobytes()
def forked(body=score):
    # 20 seconds, then SIGALRM ends the child and its status says so.
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        try:
            os._exit(0 if body() == wanted else 3)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(4)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""


def run_python(
    code: str, environment: dict[str, str] | None = None, timeout: float = 90, prelude: str = PRELUDE
) -> subprocess.CompletedProcess[str]:
    """A fresh interpreter runs prelude and code; the caller looks at its exit status and output."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("XENTRS_")}
    script = textwrap.dedent(prelude) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**inherited, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def must_succeed(code: str, environment: dict[str, str] | None = None, prelude: str = PRELUDE) -> str:
    ended = run_python(code, environment, prelude=prelude)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_fork_before_first_use() -> None:
    """The child is the first to use the kernel; then the parent."""
    must_succeed("""
        import subprocess
        script = "import numpy as np, xentrs as xe, sys;"
        script += "x = np.random.default_rng(0).normal(0, 3, (64, 5000));"
        script += "sys.stdout.buffer.write(xe.row_stats(x.astype(np.float32), np.arange(64)).nll.tobytes())"
        wanted = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout
        assert forked() == 0
        assert score() == wanted
    """)


@pytest.mark.parametrize("threads", ["1", "4"])
def test_fork_after_use(threads: str) -> None:
    """Child, second child, grandchild, then the parent again."""
    must_succeed(
        """
        wanted = score()
        assert forked() == 0 and forked() == 0
        assert score() == wanted
        def grandchild():
            assert score() == wanted
            assert forked() == 0
            return score()
        assert forked(grandchild) == 0
        assert score() == wanted
    """,
        {"XENTRS_NUM_THREADS": threads},
    )


def test_fork_during_use_in_another_thread() -> None:
    must_succeed(
        """
        wanted = score()
        stop = threading.Event()
        def work():
            while not stop.is_set():
                assert score() == wanted
        worker = threading.Thread(target=work)
        worker.start()
        statuses = [forked() for _ in range(20)]
        stop.set()
        worker.join(20)
        assert statuses == [0] * 20 and not worker.is_alive(), statuses
    """,
        {"XENTRS_NUM_THREADS": "4"},
    )


def test_fork_from_another_thread() -> None:
    must_succeed("""
        wanted = score()
        statuses = []
        worker = threading.Thread(target=lambda: statuses.extend(forked() for _ in range(5)))
        worker.start()
        worker.join(60)
        assert statuses == [0] * 5
    """)


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_process_pool(method: str, tmp_path: Path) -> None:
    """multiprocessing and ProcessPoolExecutor, after the parent has used the kernel."""
    script = tmp_path / "pool.py"
    script.write_text(
        textwrap.dedent(PRELUDE)
        + textwrap.dedent("""
        def task(number):
            return score()
        if __name__ == "__main__":
            import concurrent.futures, multiprocessing
            signal.alarm(80)
            context = multiprocessing.get_context(sys.argv[1])
            wanted = score()
            with context.Pool(2) as pool:
                assert pool.map(task, range(6)) == [wanted] * 6
            with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
                assert list(executor.map(task, range(6))) == [wanted] * 6
    """)
    )
    ended = subprocess.run(
        [sys.executable, str(script), method], capture_output=True, text=True, timeout=90, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_b25_call_at_exit() -> None:
    out = must_succeed("""
        import atexit
        signal.alarm(20)
        wanted = score()
        atexit.register(lambda: print("same" if score() == wanted else "other", flush=True))
    """)
    assert out == "same\n"


def test_b25_exit_while_daemon_threads_call() -> None:
    ended = run_python("""
        signal.alarm(20)
        def work():
            while True:
                score()
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.5)
    """)
    assert ended.returncode == 0, ended.stderr


def test_b25_sub_interpreter_does_not_hang() -> None:
    """Success or an error; numpy itself refuses some. Only a hang or a crash fails."""
    ended = run_python(
        """
        import signal
        signal.alarm(60)
        try:
            import _xxsubinterpreters as interpreters
        except ImportError:
            import _interpreters as interpreters
        import xentrs
        other = interpreters.create()
        try:
            interpreters.run_string(other, "import xentrs, numpy; xentrs.logsumexp(numpy.zeros(3))")
        except Exception as error:
            print("refused:", error)
        else:
            print("worked")
        """,
        prelude="",
    )
    assert ended.returncode == 0, ended.stderr
    assert "refused" in ended.stdout or "worked" in ended.stdout


def test_import_leaves_torch_alone() -> None:
    out = must_succeed("""
        score(), xe.kl_divergence(logits, logits), xe.Perplexity().compute(), xe.RowStatsState(5)
        print([name for name in sys.modules if name.split(".")[0] in ("torch", "transformers", "pyarrow")])
    """)
    assert out == "[]\n"


@pytest.mark.parametrize("value", ["garbage", "-1", "1.5", "1000000", "4 4", "0x4"])
def test_b23_environment_threads(value: str) -> None:
    ended = run_python("xe.num_threads(); score()", {"XENTRS_NUM_THREADS": value})
    assert ended.returncode == 1, ended.stdout + ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert "ParamError" in last
    assert "XENTRS_NUM_THREADS" in last
    assert value in last


@pytest.mark.parametrize("value", ["1", "3", "16"])
def test_environment_threads_are_used(value: str) -> None:
    assert must_succeed("print(xe.num_threads(), len(score()))", {"XENTRS_NUM_THREADS": value}) == f"{value} 512\n"


@pytest.mark.parametrize("value", ["garbage", "AVX9000", "neon", "avx512 "])
def test_environment_isa(value: str) -> None:
    ended = run_python("xe.isa(); score()", {"XENTRS_ISA": value})
    assert ended.returncode == 1, ended.stdout + ended.stderr
    last = ended.stderr.strip().splitlines()[-1]
    assert "IsaError" in last
    assert "XENTRS_ISA" in last
    assert value.strip() in last


@pytest.mark.parametrize("value", ["scalar", "avx2", "avx512"])
def test_environment_isa_is_used_or_refused(value: str) -> None:
    ended = run_python("print(xe.isa(), len(score()))", {"XENTRS_ISA": value})
    if value in xe.available_isas():
        assert ended.stdout == f"{value} 512\n", ended.stderr
    else:
        assert ended.returncode == 1
        assert "IsaError" in ended.stderr


def test_b26_other_rounding_modes_are_told() -> None:
    """A thread that does not round to nearest gets a RuntimeWarning with its result, and keeps its mode."""
    out = must_succeed("""
        import ctypes, warnings
        libm = ctypes.CDLL("libm.so.6")
        wanted = score()
        for mode in (0x400, 0x800, 0xC00):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert libm.fesetround(mode) == 0
                got = score()
                kept = libm.fegetround()
                libm.fesetround(0)
            print([warning.category.__name__ for warning in caught], kept == mode, got == wanted)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert score() == wanted
    """)
    assert out == "['RuntimeWarning'] True True\n" * 3


def test_b14_more_rows_than_memory() -> None:
    """2^40 rows by stride 0: the results would need terabytes. An error, no abort."""
    ended = run_python("""
        for shape in ((2**40, 2**20), (2**59, 1), (2**60, 0)):
            huge = np.lib.stride_tricks.as_strided(np.zeros(1, np.float32), shape, (0, 0))
            for call in (xe.row_stats, xe.logsumexp, lambda rows: xe.kl_divergence(rows, rows)):
                try:
                    call(huge)
                except (MemoryError, xe.ShapeError) as error:
                    print(type(error).__name__)
    """)
    assert ended.returncode == 0, ended.stderr
    assert len(ended.stdout.split()) == 9
