"""The package's names, which are loaded when they are used."""

import importlib
import subprocess
import sys

import pytest

from drl_mpi import envs


def test_every_name_is_there_and_has_one_home():
    homes = [name for names in envs._HOMES.values() for name in names]
    assert sorted(homes) == envs.__all__
    for module, names in envs._HOMES.items():
        home = importlib.import_module(f"drl_mpi.envs.{module}")
        for name in names:
            assert getattr(envs, name) is getattr(home, name)
            assert getattr(envs, name).__module__ == home.__name__


def test_other_names_are_not():
    with pytest.raises(AttributeError, match=r"'drl_mpi\.envs' has no attribute 'EnvOption'"):
        _ = envs.EnvOption
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from drl_mpi.envs import nothing  # noqa: F401


def test_options_load_no_emulator():
    """A parameter server reads them."""
    code = (
        "import sys; from drl_mpi.envs import EnvOptions; EnvOptions(sticky=0.25); "
        "print(*{'ale_py', 'gymnasium', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == ""
