"""The command line: arguments in, exit code out; one file per command.

Data goes to stdout, people's text to stderr. Importing this package and showing help loads neither torch,
transformers nor pyarrow: commands import what they need when they run.
"""

from __future__ import annotations

from collections.abc import Sequence

import rich_click as click

import xentrs
from xentrs.cli.audit import audit_command
from xentrs.cli.dataset_inference import dataset_inference_command
from xentrs.cli.detect import detect_command
from xentrs.cli.exit_codes import run_mapped
from xentrs.cli.freq import freq_group
from xentrs.cli.gate import gate_command
from xentrs.cli.info import info_command
from xentrs.cli.model import model_group
from xentrs.cli.order_test import order_test_command
from xentrs.cli.score import score_command
from xentrs.cli.select import select_command
from xentrs.cli.summary import summary_command
from xentrs.cli.verify import verify_command

__all__ = ["commands", "main"]


@click.group(name="xentrs", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(xentrs.__version__, prog_name="xentrs")
def commands() -> None:
    """Exactly how likely text is under a language model, on CPUs.

    Exit codes: 0 done, 1 failed, 2 usage or mismatch, 3 finished with quarantined input,
    4 gate failed, 130 and 143 interrupted.
    """


commands.add_command(score_command)
commands.add_command(audit_command)
commands.add_command(summary_command)
commands.add_command(gate_command)
commands.add_command(verify_command)
commands.add_command(detect_command)
commands.add_command(dataset_inference_command)
commands.add_command(order_test_command)
commands.add_command(freq_group)
commands.add_command(select_command)
commands.add_command(model_group)
commands.add_command(info_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_mapped(lambda: commands.main(args=arguments, prog_name="xentrs", standalone_mode=False))
