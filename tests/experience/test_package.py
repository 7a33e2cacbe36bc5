"""The package's own names are all that is needed to make, store and sample experience."""

import importlib
import pkgutil

from drl_mpi import experience


def test_names_are_listed_once_and_come_from_the_package():
    assert experience.__all__ == sorted(set(experience.__all__))
    modules = {module.name for module in pkgutil.iter_modules(experience.__path__)}
    public = {name for name in vars(experience) if not name.startswith("_")}
    assert public - modules == set(experience.__all__)
    for name in experience.__all__:
        home = getattr(experience, name).__module__
        assert home.rpartition(".")[0] == "drl_mpi.experience"
        assert getattr(importlib.import_module(home), name) is getattr(experience, name)
