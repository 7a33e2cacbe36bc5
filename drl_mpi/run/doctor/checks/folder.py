"""The run folder: writable, roomy, the same everywhere."""

from __future__ import annotations

from drl_mpi.run.doctor.checks.words import few, size
from drl_mpi.run.doctor.facts import Finding, Survey, fail, ok, warn

NEEDED_BYTES = 100_000_000
"""Below this not even a run without replay fits: two checkpoints, curves, logs."""
AMPLE_BYTES = 2_000_000_000
"""Below this a replay hardly fits into a checkpoint."""


def usable(survey: Survey) -> list[Finding]:
    """Files can be written, synchronised and renamed there, and there is room."""
    name, path = "run folder", survey.run_dir
    # Where the folder is another one, its errors say nothing of ours.
    broken = {
        host: found.error for host, found in survey.folders.items() if found.error and found.same
    }
    if broken:
        host, error = next(iter(broken.items()))
        remedy = "choose another one (--run-dir), in your home or scratch file system"
        return [fail(name, f"{path!r} cannot be used on {host}: {error}", remedy)]
    good = {host: found for host, found in survey.folders.items() if not found.error}
    if not good:
        return []
    found = min(good.values(), key=lambda folder: folder.free)
    slowest = max(folder.sync_ms for folder in good.values())
    text = f"{path} on {found.kind or 'an unknown file system'}, {size(found.free)} free"
    remedy = "free some space, or choose another one (--run-dir)"
    if found.free < NEEDED_BYTES:
        return [fail(name, text, remedy)]
    if found.free < AMPLE_BYTES:
        return [warn(name, text, remedy)]
    return [ok(name, f"{text}, a small file is on disk in {slowest:.1f} ms")]


def shared(survey: Survey) -> list[Finding]:
    """What rank 0 writes is seen on all hosts."""
    if len(survey.folders) < 2:
        return []
    other = [host for host, found in survey.folders.items() if not found.same]
    if other:
        text = f"what rank 0 wrote in {survey.run_dir} is not seen on {few(other)}"
        remedy = "choose a folder that all hosts share (--run-dir): your home or scratch"
        return [fail("shared folder", text, remedy)]
    return [ok("shared folder", f"all {len(survey.folders)} hosts see the same files")]


def locks(survey: Survey) -> list[Finding]:
    """HDF5 locks files that it opens, which some network file systems cannot."""
    good = {host: found for host, found in survey.folders.items() if not found.error}
    bad = {host: found.lock_error for host, found in good.items() if found.lock_error}
    if bad:
        host, error = next(iter(bad.items()))
        remedy = "export HDF5_USE_FILE_LOCKING=FALSE"
        return [warn("file locks", f"HDF5 cannot lock files on {host}: {error}", remedy)]
    return [ok("file locks", "HDF5 can lock files")] if good else []
