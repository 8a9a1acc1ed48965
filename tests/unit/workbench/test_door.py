"""The workbench's command line, and the one that passes its tools' names on."""

from __future__ import annotations

import argparse
from importlib import import_module

import pytest

from gateway import __main__ as program
from gateway.workbench import __main__ as workbench


def test_tools_have_the_same_names_on_both_command_lines() -> None:
    """The program knows the names without importing the workbench, so they are written twice."""
    assert set(program.TOOLS) == set(workbench.TOOLS)


@pytest.mark.parametrize("name", workbench.TOOLS)
def test_tool_declares_its_arguments_and_runs(name: str) -> None:
    """Every tool's module has `add_arguments`, which a parser takes, and `run`."""
    tool = import_module(f"gateway.workbench.{workbench.TOOLS[name][0]}")
    tool.add_arguments(argparse.ArgumentParser())
    assert callable(tool.run)


def test_help_lists_the_tools(capsys: pytest.CaptureFixture[str]) -> None:
    """Both command lines list all tools but the one that another tool starts."""
    for command in (
        lambda: workbench.run(["--help"], "workbench"),
        lambda: program.main(["--help"]),
    ):
        with pytest.raises(SystemExit):
            command()
        text = capsys.readouterr().out
        assert all(name in text for name in workbench.TOOLS if name != "bench-provider")
        assert "bench-provider" not in text


def test_tool_shows_its_own_help(capsys: pytest.CaptureFixture[str]) -> None:
    """`sagesched simulate --help` describes that tool's arguments under the program's name."""
    with pytest.raises(SystemExit):
        program.main(["simulate", "--help"])
    text = capsys.readouterr().out
    assert text.startswith("usage: sagesched simulate")
    assert "--scenarios" in text
