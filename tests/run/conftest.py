"""What tests of launching share."""

import os

import pytest


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """``programs(name, script)``: a program that is found before all others."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(name, script):
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return make
