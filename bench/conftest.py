"""Benchmarks run when asked for by folder: `pytest bench`; the test suite only checks they work."""

from __future__ import annotations

from typing import Any

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Undo the project-wide `--benchmark-disable`, unless the command line says it itself."""
    if "--benchmark-disable" not in config.invocation_params.args:
        config.option.benchmark_disable = False


def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
    """Put the project's own machine facts into `--benchmark-json` files."""
    from neds_rt.machine import machine_facts

    machine_info["neds"] = machine_facts()
