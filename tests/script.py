"""Runs a Python script in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parent


def run(
    script: str,
    *arguments: str,
    check: bool = True,
    timeout: float = 120,
    **environment: str | None,
) -> subprocess.CompletedProcess[str]:
    """`python -c script arguments` in the tests' folder; a variable of None is removed."""
    variables = {name: value for name, value in os.environ.items() if name != "FIXCLF_ISA"}
    for name, value in environment.items():
        variables.pop(name, None)
        if value is not None:
            variables[name] = value
    result = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=TESTS,
        env=variables,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert not check or result.returncode == 0, result.stderr
    return result
