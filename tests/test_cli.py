"""The `fixclf` command."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from script import run
from typer.testing import CliRunner

import fixclf_infer
from fixclf_infer import _native, backends
from fixclf_infer.cli import app


def test_info_says_what_runs() -> None:
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["info"])
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert f"fixclf_infer {fixclf_infer.__version__}" in lines[0]

    def value(name: str) -> str:
        cells = [[cell.strip() for cell in line.split("│")[1:3]] for line in lines]
        (found,) = [cell[1] for cell in cells if cell and cell[0] == name]
        return found

    assert value("instruction set in use") == _native.isa()
    assert value("compiled") == ", ".join(_native.compiled_isas())
    assert value("supported by this machine") == ", ".join(_native.supported_isas())
    assert value("threads (NumPy)") == str(_native.num_threads())
    assert value("torch") == torch.__version__
    assert value("torch operators").endswith("libfixclf_torch.so")


def test_info_follows_the_instruction_set(isa: str) -> None:
    assert backends.describe()["instruction set in use"] == isa


def command() -> str:
    found = Path(sys.executable).with_name("fixclf")
    return str(found) if found.exists() else shutil.which("fixclf") or pytest.skip("not installed")


def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "200", **environment}
    return subprocess.run(
        [command(), *arguments], env=variables, capture_output=True, text=True, timeout=60
    )


def test_the_installed_command() -> None:
    result = call("info", FIXCLF_ISA="scalar")
    assert result.returncode == 0
    (line,) = [line for line in result.stdout.splitlines() if "instruction set in use" in line]
    assert line.split("│")[2].strip() == "scalar"


def test_info_names_a_bad_instruction_set() -> None:
    result = call("info", FIXCLF_ISA="v9")
    assert result.returncode in (0, 1)
    assert "FIXCLF_ISA is 'v9', expected one of scalar" in result.stdout + result.stderr
    assert "Traceback" not in result.stderr


def test_no_command_prints_help_and_an_unknown_one_fails() -> None:
    assert "info" in CliRunner().invoke(app, []).stdout
    result = call("inform")
    assert result.returncode == 2
    assert "inform" in result.stderr


def test_shells_can_complete_it() -> None:
    script = "from fixclf_infer.cli import app; app(prog_name='fixclf')"
    done = run(script, _FIXCLF_COMPLETE="source_bash")
    assert "complete -o default -F _fixclf_completion fixclf" in done.stdout
