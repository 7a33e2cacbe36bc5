"""Imports every package that jobs need, and says how that went: one line of JSON each.

The doctor runs it as a program of its own, since an import may crash or never end.
"""

from __future__ import annotations

import importlib
import json
import sys
from importlib import metadata
from typing import Any

from drl_mpi.run.doctor.look import PACKAGES


def main() -> None:
    """Prints {"package": ..., "version": ..., "error": ..., "torch": ...} for each."""
    for package, module in PACKAGES.items():
        row: dict[str, Any] = {"package": package, "version": "", "error": "", "torch": None}
        try:
            loaded = importlib.import_module(module)
            row["version"] = _version(package, loaded)
            if package == "torch":
                row["torch"] = _cuda(loaded)
        except Exception as error:
            row["error"] = " ".join(str(error).split()) or type(error).__name__
        print(json.dumps(row), flush=True)


def _version(package: str, module: Any) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return str(getattr(module, "__version__", "unknown"))


def _cuda(torch: Any) -> dict[str, Any]:
    """torch.version.cuda, and the names of the GPUs that torch sees."""
    try:
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    except Exception as error:
        print(error, file=sys.stderr)
        names = []
    return {"cuda": torch.version.cuda, "gpus": names}


if __name__ == "__main__":
    main()
