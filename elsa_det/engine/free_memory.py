"""Memory that is free: of the host within the limits of its containers, or of a CUDA device."""

from __future__ import annotations

from pathlib import Path

import torch


def free_memory(device: str) -> tuple[int, str] | None:
    """Bytes that this process may still take on ``device``, and where the figure is from; None if it cannot be told."""
    if torch.device(device).type == "cuda":
        named = torch.device(device)
        return torch.cuda.mem_get_info(named if named.index is not None else None)[0], "free on the CUDA device"
    return free_host_memory()


def free_host_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> tuple[int, str] | None:
    """The least of Linux's MemAvailable and what the control groups of this process leave, versions 1 and 2."""
    found = []
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append((int(line.split()[1]) * 1024, "MemAvailable"))
        groups = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        groups = []
    for group in groups:
        _, controllers, path = group.split(":", 2)
        if controllers == "":
            names = ("memory.max", "memory.current", "inactive_file")
            found += _left(cgroups, path, names)
        elif "memory" in controllers.split(","):
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            found += _left(cgroups / "memory", path, names)
    return min(found) if found else None


def _left(root: Path, path: str, names: tuple[str, str, str]) -> list[tuple[int, str]]:
    """What each group from ``path`` up to the root leaves; in a container the path may not be there, but the root."""
    limit_name, usage_name, cache_name = names
    group = root / path.lstrip("/")
    found = []
    while True:
        try:
            limit = int((group / limit_name).read_text())
            usage = int((group / usage_name).read_text())
            cache = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            left = limit - usage + int(cache.get(cache_name, 0))  # files that are cached make room
            found.append((max(left, 0), f"within {group / limit_name}={limit}"))
        except (OSError, ValueError):  # no such group, or "max": no limit
            pass
        if group == root:
            return found
        group = group.parent
