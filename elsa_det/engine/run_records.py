"""What a run was started with, written into its folder: command, environment, state of the sources."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import os
import shlex
import subprocess
import sys
import threading
from pathlib import Path

from .. import __version__
from ..d2 import collect_env_info, comm, describe_provider
from ..ops import backends

logger = logging.getLogger(__name__)

COMMAND, ENVIRONMENT, GIT = "command.txt", "environment.txt", "git.txt"
_MOST = 1_000_000  #: bytes of a diff
_PATIENCE = 30  # seconds for git


def write_records(folder: str | os.PathLike[str], *, anew: bool) -> None:
    """Write ``command.txt``, ``environment.txt`` and ``git.txt``, on the main process; what fails is said.

    Args:
        folder: Of the run.
        anew: Whether a new run begins; otherwise what the run began with stays, and this goes below it.
    """
    if not comm.is_main_process():
        return
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    for name, describe in ((COMMAND, describe_command), (ENVIRONMENT, describe_environment), (GIT, describe_sources)):
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            with open(Path(folder) / name, "w" if anew else "a", encoding="utf-8", errors="replace") as file:
                file.write(f"=== {now}\n{describe()}\n\n")
        except Exception as error:  # a record is no reason not to train
            logger.warning("%s could not be written: %r", Path(folder) / name, error)


def describe_command() -> str:
    """The command line and the folder that it was given in."""
    return f"cd {shlex.quote(os.getcwd())}\n{shlex.join([sys.executable, *sys.argv])}"


def describe_environment() -> str:
    """Provider, versions, backends of the operator, Detectron2's account of the machine, installed packages."""
    lines = [f"elsa_det {__version__} @{Path(__file__).parents[1]}", f"Running on {describe_provider()}", ""]
    lines += ["Operator:", *(f"  {backend}" for backend in backends())]
    found = {(dist.metadata["Name"], dist.version) for dist in importlib.metadata.distributions()}
    packages = sorted((f"{name}=={version}" for name, version in found if name), key=str.lower)
    return "\n".join([*lines, "", collect_env_info(), "", "Packages:", *packages])


def describe_sources() -> str:
    """Commit, branch and changes of the source tree of elsa_det and of the working directory, where git has them."""
    package = Path(__file__).resolve().parents[1]
    parts, seen = [], set()
    for what, place, tracked in (
        ("elsa_det", package, str(package / "__init__.py")),
        ("the working directory", Path.cwd(), None),
    ):
        top, trouble = _git(place, "rev-parse", "--show-toplevel")
        if not trouble and tracked is not None:  # installed somewhere below another project's sources?
            _, trouble = _git(place, "ls-files", "--error-unmatch", "--", tracked)
        if trouble:
            parts.append(f"{what} ({place}): no git state: {trouble}")
        elif top not in seen:
            seen.add(top)
            parts.append(f"{what}: {_describe_repository(Path(top))}")
    return "\n\n".join(parts)


def _describe_repository(top: Path) -> str:
    commit, none = _git(top, "rev-parse", "HEAD")
    branch, detached = _git(top, "symbolic-ref", "--short", "-q", "HEAD")
    status, trouble = _git(top, "status", "--short")
    if not trouble and not none and status:
        diff, trouble = _git(top, "diff", "--no-ext-diff", "--no-color", "HEAD")
    else:
        diff = ""
    changes = trouble or (f"changes:\n{status}" if status else "no changes")
    lines = [
        f"repository {top}",
        "no commit yet" if none else f"commit {commit}",
        "no branch (detached)" if detached else f"branch {branch}",
        changes,
    ]
    return "\n".join([*lines, *(["", diff] if diff else [])])


def _git(place: Path, *arguments: str) -> tuple[str, str]:
    """Its output, at most :data:`_MOST` bytes, and what went wrong, empty if nothing did."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    try:
        process = subprocess.Popen(
            ["git", "-C", str(place), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except OSError as error:
        return "", f"git cannot be run ({error.strerror})"
    late = threading.Timer(_PATIENCE, process.kill)
    late.start()
    with process:
        assert process.stdout is not None
        assert process.stderr is not None
        output = process.stdout.read(_MOST + 1)
        if len(output) > _MOST:
            process.kill()
            cut = output[:_MOST].decode(errors="replace")
            late.cancel()
            return f"{cut}\n[cut: more than {_MOST:,} bytes]", ""
        complaint = process.stderr.read().decode(errors="replace").strip()
    late.cancel()
    if process.returncode:
        return "", complaint.splitlines()[0] if complaint else f"git {arguments[0]} ended with {process.returncode}"
    return output.decode(errors="replace").rstrip(), ""
