"""Times, peaks of memory, saved activations and values, measured in the process that runs this."""

from __future__ import annotations

import ctypes
import gc
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ops import elsa_attention, elsa_attention_unfold
from ..ops.registration import use_compiled
from .cases import BOTH, DTYPES, FORWARD, KERNEL_SIZE, Answer, Job
from .peers import Peer, Unavailable, build, core_inputs, using_operator

Timer = Callable[[Callable[[], object], int], float]

_SHORT = 1e-3  # seconds; shorter calls are repeated within a sample
_LONG = 2.0  # seconds; such a call is warm after one
_READINGS, _LARGE = 7, 50_000_000  # of the peak, while it has fewer bytes than this
_FEWEST = 3  # samples of a peer that has used up its time


def run_job(job: Job) -> Answer:
    """Do what a job says; a peer that cannot run has its reason in the answer."""
    torch.set_num_threads(job.threads)
    answer = {"time": measure_times, "memory": measure_memory, "saved": measure_saved, "values": measure_values}[
        job.kind
    ](job)
    answer.compiled = use_compiled(torch.device(job.case.device), DTYPES[job.case.dtype], True)
    return answer


# Time ----------------------------------------------------------------------------------------------------------------


def cpu_timer(call: Callable[[], object], count: int) -> float:
    """Seconds of a call, averaged over ``count`` of them."""
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def cuda_timer(call: Callable[[], object], count: int) -> float:
    """Seconds of a call on the GPU; short ones queue behind a pause, so that launching them is not what is timed."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    if count > 1:
        torch.cuda._sleep(20_000_000)  # clock cycles, some 10 ms
    begin.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / count


def measure_times(job: Job) -> Answer:
    """Median seconds per peer and direction; the peers take turns."""
    answer, peers = Answer(), _build_all(job)
    ready = {name: peer for name, peer in peers.items() if isinstance(peer, Peer)}
    answer.reasons = {name: peer for name, peer in peers.items() if isinstance(peer, str)}
    timer = cuda_timer if job.case.device == "cuda" else cpu_timer
    answer.values = interleave(ready, job, timer, answer.reasons)
    return answer


def interleave(peers: dict[str, Peer], job: Job, timer: Timer, reasons: dict[str, str]) -> dict[str, dict[str, float]]:
    """Time peers in turn, ``job.repeats`` rounds of all; the medians per peer and direction.

    Where a peer fails, ``reasons`` gets why.
    """
    counts: dict[tuple[str, str], int] = {}
    for name, peer in peers.items():
        for direction in job.plan[name]:
            torch.set_num_threads(peer.threads or job.threads)
            try:
                seconds = timer(partial(peer.run, direction), 1)  # compiles, allocates
                if seconds < _LONG or name.startswith("compiled"):
                    seconds = timer(partial(peer.run, direction), 1)
            except Exception as error:
                reasons[name] = f"{direction} does not run: {_brief(error)}"
                continue
            counts[name, direction] = min(100, math.ceil(_SHORT / max(seconds, 1e-9)))
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in counts}
    spent = dict.fromkeys(counts, 0.0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(job.repeats):
            for (name, direction), count in counts.items():
                key, peer = (name, direction), peers[name]
                if spent[key] > job.seconds and len(samples[key]) >= _FEWEST:
                    continue
                threads = peer.threads or job.threads
                if threads != torch.get_num_threads():
                    torch.set_num_threads(threads)
                    peer.run(direction)  # lets the thread pool settle
                seconds = timer(partial(peer.run, direction), count)
                samples[key].append(seconds)
                spent[key] += seconds * count
    finally:
        gc.enable()
    medians: dict[str, dict[str, float]] = {}
    for (name, direction), values in samples.items():
        medians.setdefault(name, {})[direction] = statistics.median(values)
    return medians


# Memory --------------------------------------------------------------------------------------------------------------


def reset_peak(device: str) -> int:
    """Start a new peak; returns the bytes in use.

    Raises:
        OSError: the system does not let a process reset its peak (Linux does).
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return _status_bytes("VmRSS")


def peak_bytes(device: str) -> int:
    """Most bytes in use since :func:`reset_peak`."""
    if device == "cuda":
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()
    return _status_bytes("VmHWM")


def measure_memory(job: Job) -> Answer:
    """Peak bytes of a call above its inputs, per peer and direction, and the bytes of the inputs."""
    answer, device = Answer(), job.case.device
    for name, directions in job.plan.items():
        peer = _build(name, job)
        if isinstance(peer, str):
            answer.reasons[name] = peer
            continue
        answer.inputs[name] = sum(t.numel() * t.element_size() for t in peer.inputs)
        for direction in directions:
            torch.set_num_threads(peer.threads or job.threads)
            try:
                peer.run(direction)  # what stays after a first call is no peak
                peak = _peak_of(partial(peer.run, direction), device)
            except Exception as error:
                answer.reasons[name] = f"{direction} does not run: {_brief(error)}"
                continue
            answer.values.setdefault(name, {})[direction] = peak
        del peer
    return answer


def _peak_of(call: Callable[[], object], device: str) -> int:
    """Peak bytes of a call. The kernel's peak lags behind by up to some hundred kilobytes, as it counts pages per CPU
    and adds up now and then; so small ones are read several times, and the largest counts."""
    peak = 0
    for _ in range(_READINGS):
        before = reset_peak(device)
        call()
        peak = max(peak, peak_bytes(device) - before)
        if device == "cuda" or peak > _LARGE:
            break
    return peak


def measure_saved(job: Job) -> Answer:
    """Bytes that the operator makes a forward of the backbone keep for the backward, for each peer."""
    answer = Answer()
    for name in job.plan:
        operator = elsa_attention_unfold if name == "unfold" else elsa_attention
        peer = _build("elsa" if name == "unfold" else name, job)
        if isinstance(peer, str):
            answer.reasons[name] = peer
        else:
            answer.values[name] = {BOTH: saved_bytes(peer, operator)}
        del peer
    return answer


def saved_bytes(peer: Peer, operator: Callable[..., Tensor]) -> int:
    """Bytes of what a peer's forward keeps for its backward and ``operator`` takes or makes, each tensor once."""
    kept: dict[tuple[int, int], int] = {}
    taken: set[tuple[int, int]] = set()
    inside = False

    def key(tensor: Tensor) -> tuple[int, int]:
        return tensor.data_ptr(), tensor.numel()

    def pack(tensor: Tensor) -> Tensor:
        kept[key(tensor)] = tensor.numel() * tensor.element_size()
        if inside:
            taken.add(key(tensor))
        return tensor

    def watched(*args: Any, **kwargs: Any) -> Tensor:
        nonlocal inside
        taken.update(key(argument) for argument in args if isinstance(argument, Tensor))
        inside = True
        try:
            return operator(*args, **kwargs)
        finally:
            inside = False

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), using_operator(watched):
        out = peer.call()  # alive until all is counted, so that no address is used twice
    total = sum(kept[name] for name in taken if name in kept)
    del out
    return total


# Values --------------------------------------------------------------------------------------------------------------


def measure_values(job: Job) -> Answer:
    """Largest errors of the core's output and gradients against the definition, relative to their largest value."""
    leaves = [t.detach().requires_grad_() for t in core_inputs(job.case)]
    out = elsa_attention(leaves[0], leaves[1], None, leaves[2], kernel_size=KERNEL_SIZE)
    grad = torch.randn_like(out)
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    errors = dict.fromkeys(range(4), 0.0)
    largest = dict.fromkeys(range(4), 0.0)
    ghost_sum = torch.zeros_like(leaves[2], dtype=torch.float32)
    heads, taps = job.case.heads, KERNEL_SIZE**2
    width = job.case.channels // heads
    for image in range(job.case.batch):
        for head in range(heads):  # a head at a time: unfold needs 49 times the memory
            channels, logits = slice(head * width, (head + 1) * width), slice(head * taps, (head + 1) * taps)
            parts = [
                leaves[0][image : image + 1, channels],
                leaves[1][image : image + 1, logits],
                leaves[2][channels],
            ]
            parts = [t.detach().float().requires_grad_() for t in parts]
            expected_out = elsa_attention_unfold(parts[0], parts[1], None, parts[2], kernel_size=KERNEL_SIZE)
            grads = torch.autograd.grad(expected_out, parts, grad[image : image + 1, channels].float())
            ghost_sum[channels] += grads[2]
            for i, (expected, rows) in enumerate(
                ((expected_out.detach(), channels), (grads[0], channels), (grads[1], logits))
            ):
                errors[i] = max(errors[i], (found[i][image : image + 1, rows].float() - expected).abs().max().item())
                largest[i] = max(largest[i], expected.abs().max().item())
            del expected_out, grads
    errors[3] = (found[3].float() - ghost_sum).abs().max().item()
    largest[3] = ghost_sum.abs().max().item()
    relative = [errors[i] / largest[i] for i in range(4)]
    relative = [math.inf if math.isnan(value) else value for value in relative]
    return Answer(values={"elsa": {FORWARD: relative[0], BOTH: max(relative)}})


def _build_all(job: Job) -> dict[str, Peer | str]:
    return {name: _build(name, job) for name in job.plan}


def _build(name: str, job: Job) -> Peer | str:
    try:
        return build(name, job.case)
    except Unavailable as error:
        return str(error)
    except (ImportError, RuntimeError) as error:
        return f"cannot be built: {_brief(error)}"


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:200]


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {key}")
