"""tools/benchmark_op.py and elsa_det.benchmark: the arithmetic on made-up times, the structure on tiny sizes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch

from elsa_det.benchmark import measure, runner
from elsa_det.benchmark.cases import BOTH, FORWARD, Answer, Case, Job, parse_size
from elsa_det.benchmark.figure import growth_figure
from elsa_det.benchmark.goals import (
    AROUND_ONE,
    AT_LEAST,
    AT_MOST,
    CPU_GOALS,
    GPU_GOALS,
    Part,
    Result,
    cpu_results,
    measure_cpu_goals,
    measure_gpu_goals,
    results_to_list,
    summary,
    unmet,
    verdict,
    verdicts,
)
from elsa_det.benchmark.peers import BUILDERS, Peer, build, core_inputs, plain_shifted_sum, plain_shifted_sum_nhwc
from elsa_det.benchmark.records import Record, Records, memory_slope, slope, time_ratios, time_slopes, worst
from elsa_det.benchmark.report import busy_warning, goals_table, machine_line, missing_lines, times_table
from elsa_det.benchmark.runner import DEFAULT, RETAINED, Runner, Settings, run_in_child
from elsa_det.layers import ELSAAttention
from elsa_det.ops import elsa_attention_unfold

TOOL = Path(__file__).parents[2] / "tools" / "benchmark_op.py"
TINY = Case("core", 32, 48, stage=1)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_op_tool", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def record(peer, seconds, direction=FORWARD, case=TINY, peak=None, mode=RETAINED):
    return Record(case, peer, direction, {mode: seconds}, peak)


def text_of(table):
    from rich.console import Console

    console = Console(width=250)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


# --- arithmetic -------------------------------------------------------------------------------------------------------


def test_ratios_are_taken_process_by_process_and_the_worst_counts():
    slow, fast = record("unfold", [8.0, 12.0, 9.0]), record("elsa", [2.0, 2.0, 3.0])
    assert time_ratios(slow, fast, RETAINED) == [4.0, 6.0, 3.0]
    assert worst(time_ratios(slow, fast, RETAINED)) == 3.0
    assert worst(time_ratios(fast, slow, RETAINED), largest=True) == pytest.approx(1 / 3)
    assert time_ratios(slow, fast, DEFAULT) == []
    assert worst([]) is None
    assert slow.median(RETAINED) == 9.0


def test_slope_is_the_exponent_of_the_growth():
    pixels = [256**2, 512**2, 1024**2, 2048**2]
    assert slope(pixels, [3e-9 * p for p in pixels]) == pytest.approx(1.0)
    assert slope(pixels, [7.0 * p**1.2 for p in pixels]) == pytest.approx(1.2)
    # by hand: x = 0, 1, 2 and y = 0, 1, 4 (in powers of two) have the slope 2
    assert slope([1, 2, 4], [1, 2, 16]) == pytest.approx(2.0)
    with pytest.raises(ValueError, match="two sizes"):
        slope([4, 4], [1, 2])
    with pytest.raises(ValueError, match="positive"):
        slope([4, 8], [0, 2])


def test_slopes_of_records_skip_sizes_that_did_not_run():
    cases = [Case("core", side, side, stage=1) for side in (64, 128, 256)]
    rows = [record("elsa", [1.0 * c.pixels, 1.0 * c.pixels**1.5], case=c, peak=5.0 * c.pixels) for c in cases[:2]]
    rows.append(Record(cases[2], "elsa", FORWARD, reason="skipped"))
    assert time_slopes(rows, RETAINED) == pytest.approx([1.0, 1.5])
    assert memory_slope(rows) == pytest.approx(1.0)
    assert time_slopes(rows[1:], RETAINED) == []
    assert memory_slope(rows[1:]) is None


def test_interleaving_takes_turns_and_medians():
    now = {"a": [1.5, 1.5, 3.0, 1.0, 2.0], "b": [1e-4, 1e-4, 5e-4, 4e-4, 6e-4]}
    order, counts = [], []

    def peer(name):
        return Peer(lambda: order.append(name))

    def timer(call, count):
        call()
        counts.append((order[-1], count))
        return now[order[-1]].pop(0)

    job = Job("time", TINY, {"a": [FORWARD], "b": [FORWARD]}, threads=1, repeats=3)
    reasons = {}
    found = measure.interleave({"a": peer("a"), "b": peer("b")}, job, timer, reasons)
    assert found == {"a": {FORWARD: 2.0}, "b": {FORWARD: 5e-4}}
    assert order == list("aabbababab")
    assert [count for name, count in counts[4:] if name == "b"] == [10, 10, 10]  # a sample lasts a millisecond
    assert [count for name, count in counts[4:] if name == "a"] == [1, 1, 1]
    assert reasons == {}


def test_a_peer_that_fails_has_its_reason_and_the_others_their_times():
    def fail():
        raise RuntimeError("no such\nthing")

    job = Job("time", TINY, {"a": [FORWARD], "b": [FORWARD]}, threads=1, repeats=2)
    reasons = {}
    peers = {"a": Peer(fail), "b": Peer(lambda: None)}
    found = measure.interleave(peers, job, lambda call, count: call() or 1.0, reasons)
    assert found == {"b": {FORWARD: 1.0}}
    assert reasons == {"a": "forward does not run: RuntimeError: no such"}


def test_a_slow_peer_needs_three_samples_only():
    calls = []
    job = Job("time", TINY, {"a": [FORWARD]}, threads=1, repeats=9, seconds=5.0)
    measure.interleave({"a": Peer(lambda: calls.append(1))}, job, lambda call, count: call() or 4.0, {})
    assert len(calls) == 1 + 3  # one call warms up what takes long


# --- goals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "must", "aim", "sense", "expected"),
    [
        (40.0, 25, 40, AT_LEAST, "aim"),
        (39.9, 25, 40, AT_LEAST, "must"),
        (24.9, 25, 40, AT_LEAST, "missed"),
        (1.7, 3, 1.7, AT_MOST, "aim"),
        (3.0, 3, 1.7, AT_MOST, "must"),
        (3.1, 3, 1.7, AT_MOST, "missed"),
        (0.97, 0.05, 0.03, AROUND_ONE, "aim"),
        (1.05, 0.05, 0.03, AROUND_ONE, "must"),
        (0.94, 0.05, 0.03, AROUND_ONE, "missed"),
        (89.0, None, 90, AT_LEAST, "below the aim"),
        (2.5, 2, None, AT_LEAST, "met"),
        (None, 2, 3, AT_LEAST, "not measured"),
        (float("nan"), 2, 3, AT_MOST, "not measured"),
        (5.0, None, None, AT_LEAST, ""),
    ],
)
def test_verdict(value, must, aim, sense, expected):
    assert verdict(value, must, aim, sense) == expected


def test_a_part_is_as_good_as_its_worst_number():
    part = Part("forward", (25, 22), (40, 38), default_aim=(90, 85))
    assert verdicts(part, Result([41.0, 30.0])) == ["aim", "must"]
    assert summary(part, Result([41.0, 38.0])) == "aim"
    assert summary(part, Result([41.0, 30.0])) == "must"
    assert summary(part, Result([41.0, 21.0])) == "missed"
    assert summary(part, Result([41.0, None])) == "not measured"
    assert summary(part, None) == "not measured"
    assert summary(part, Result([41.0, 38.0], default=[95.0, 80.0])) == "must"  # there is no must under default malloc
    both = Part("forward", (3,), (4,), default_must=(5,), default_aim=(7,))
    assert summary(both, Result([4.5], default=[4.9])) == "missed"


def test_goals_are_those_of_the_specification():
    assert [goal.name for goal in CPU_GOALS] == [f"C{i}" for i in range(1, 13)]
    assert [goal.name for goal in GPU_GOALS] == [f"G{i}" for i in range(1, 6)]
    bounds = {
        (goal.name, part.label): (part.must, part.aim) for goal in (*CPU_GOALS, *GPU_GOALS) for part in goal.parts
    }
    assert bounds["C1", "forward"] == ((25, 22, 20), (40, 38, 35))
    assert bounds["C2", "f+b"] == ((18, 15, 13), (35, 30, 28))
    assert bounds["C8", "f+b"] == ((1.0,), (1.3,))
    assert bounds["C12", "time f+b"] == ((1.20,) * 3, (1.10,) * 3)
    assert bounds["G1", "f+b"] == ((30,), (50,))
    assert all(len(must) == len(aim) for must, aim in bounds.values())


SPEED = {"elsa": 1.0, "elsa_bf16": 0.5, "elsa_one_thread": 1.8, "unfold": 30.0, "shifted": 6.0, "compiled": 4.0}
SPEED |= {"plain": 40.0, "compiled_nhwc": 3.6, "depthwise": 2.0, "window": 1.5, "timm": 1.25}


def made_up(job, mode):
    """In proportion to the pixels, three times as much with the backward. Unfold: twice the memory, and twice the time
    under default malloc."""
    scale = {FORWARD: 1.0, BOTH: 3.0, "time": 1e-9, "memory": 10.0}

    def number(name, direction):
        double = name == "unfold" and (job.kind == "memory" or mode == DEFAULT)
        return SPEED[name] * job.case.pixels * scale[direction] * scale[job.kind] * (2 if double else 1)

    values = {name: {d: number(name, d) for d in directions} for name, directions in job.plan.items()}
    return Answer(values=values, inputs=dict.fromkeys(values, 100.0), compiled=True)


def test_cpu_goals_from_made_up_times():
    bench = Runner(Settings(processes=2), start=made_up, available=lambda device: 1e12)
    results = cpu_results(measure_cpu_goals(bench))
    expected = {
        ("C1", "forward"): 30.0,
        ("C2", "f+b"): 30.0,
        ("C3", "forward"): 3.6,  # the faster of the two
        ("C4", "f+b"): 0.5,
        ("C5", "forward"): 1.5,
        ("C6", "f+b"): 60.0,
        ("C7", "forward"): 30.0,
        ("C8", "f+b"): 1.25,
        ("C9", "forward"): 2.0,
        ("C10", "forward"): 5.0,
        ("C11", "f+b"): 1.8,
        ("C12", "memory f+b"): 1.0,
        ("C12", "time forward"): 1.0,
    }
    for key, value in expected.items():
        assert results[key].values == pytest.approx([value] * len(results[key].values)), key
    assert results["C1", "forward"].default == pytest.approx([60.0] * 3)
    assert bench.compiled is True
    met = {(row["goal"], row["part"]): row["met"] for row in results_to_list(CPU_GOALS, results)}
    assert met["C1", "forward"] == "must"
    assert met["C3", "forward"] == "aim"
    assert met["C8", "f+b"] == "must"
    assert met["C9", "forward"] == "aim"
    assert met["C12", "time f+b"] == "aim"
    assert unmet(CPU_GOALS, results) == []
    results["C5", "f+b"].values[1] = 0.9
    del results["C9", "forward"]
    assert unmet(CPU_GOALS, results) == ["C5 f+b", "C9 forward"]
    text = text_of(goals_table(CPU_GOALS, results, "Goals"))
    assert "1.5 / 0.9 / 1.5×" in text
    assert "missed" in text
    assert "25 / 22 / 20×" in text
    assert "must 5×  aim 7×" in text


def test_gpu_goals_on_a_small_case_on_the_cpu():
    def start(job, mode):
        return made_up(job, RETAINED) if job.kind in ("time", "memory") else measure.run_job(job)

    SPEED["swin"] = 0.8
    bench = Runner(Settings(threads=1, processes=1, modes=(DEFAULT,)), start=start, available=lambda device: 1e12)
    records, results = measure_gpu_goals(bench, height=64, width=96, large=64, device="cpu")
    assert set(results) == {(goal.name, part.label) for goal in GPU_GOALS for part in goal.parts}
    forward = 1e-9 * 2 * 64 * 96  # seconds of the made-up operator
    assert results["G1", "forward"].values == pytest.approx([100 * 40e-6 / forward])
    assert results["G2", "f+b"].values == pytest.approx([30.0] * 3)
    assert results["G4", "speed"].values == pytest.approx([0.8])
    assert results["G3", "kept"].values[0] > 25
    assert results["G3", "kept, logits recomputed"].values[0] > 1.5 * results["G3", "kept"].values[0]
    assert 0 < results["G5", "error over largest value"].values[0] < 0.01
    assert {record.case.dtype for record in records} == {"bfloat16"}


# --- peers and measuring ----------------------------------------------------------------------------------------------


def test_case_widths_and_maps_are_those_of_elsa_t():
    case = Case("core", 800, 1333, stage=3)
    assert (case.map_size, case.channels, case.heads) == ((50, 84), 384, 12)
    assert Case("core", 512, 512, stage=1).map_size == (128, 128)
    assert Case("backbone", 10, 20, batch=3).pixels == 600
    for wrong in (dict(level="head"), dict(stage=5), dict(dtype="int8"), dict(batch=0), dict(level="backbone")):
        with pytest.raises(ValueError):
            Case(**{**dict(level="core", height=8, width=8, stage=1), **wrong})
    assert parse_size("512") == (512, 512)
    assert parse_size("800x1333") == (800, 1333)
    with pytest.raises(ValueError, match="800x"):
        parse_size("800x")


def test_jobs_and_answers_survive_json():
    job = Job("time", TINY, {"elsa": [FORWARD]}, threads=2, repeats=7)
    assert Job.from_dict(json.loads(json.dumps(job.to_dict()))) == job
    answer = Answer({"elsa": {FORWARD: 1.5}}, {"elsa": 3.0}, {"natten": "not installed"}, True)
    assert Answer.from_dict(json.loads(json.dumps(answer.to_dict()))) == answer


@pytest.mark.parametrize("function", [plain_shifted_sum, plain_shifted_sum_nhwc])
def test_what_is_compiled_computes_the_operator(function):
    value, logits, ghost = (t.double() for t in core_inputs(TINY))
    expected = elsa_attention_unfold(value, logits, None, ghost, kernel_size=7)
    value, logits = (t if function is plain_shifted_sum_nhwc else t.contiguous() for t in (value, logits))
    torch.testing.assert_close(function(value, logits, ghost), expected)


def test_peers_of_a_level_compute_the_same():
    for case, names in (
        (TINY, ("elsa", "unfold", "shifted", "elsa_one_thread")),
        (Case("module", 64, 48, stage=2), ("elsa", "unfold", "plain", "shifted")),
        (Case("backbone", 64, 64), ("elsa", "unfold", "plain", "elsa_recompute")),
    ):
        outputs = []
        for name in names:
            out = build(name, case).call()
            outputs.append(out if isinstance(out, list) else [out])
        for other in outputs[1:]:
            torch.testing.assert_close(other, outputs[0], atol=1e-4, rtol=1e-4)


def test_all_other_peers_have_maps_of_the_same_size():
    assert build("depthwise", TINY).call().shape == (1, 96, 8, 12)
    assert build("window", TINY).call().shape == (4, 3, 49, 32)  # 2 x 2 windows of 7 x 7 cover 8 x 12
    case = Case("backbone", 64, 96)
    shapes = [out.shape for out in build("swin", case).call()]
    assert shapes == [(1, 96 << i, 16 >> i, 24 >> i) for i in range(4)]
    shapes = [out.shape for out in build("timm", case).call()]
    assert shapes == [(1, 16 >> i, 24 >> i, 96 << i) for i in range(4)]
    with pytest.raises(ValueError, match="no peer 'natten'"):
        build("natten", case)


def test_the_original_operator_is_back_after_a_peer_ran():
    import elsa_det.layers.elsa as layer

    original = layer.elsa_attention
    forward, pointwise = ELSAAttention.forward, layer.pointwise
    for name in ("unfold", "plain"):
        build(name, Case("module", 32, 32, stage=1)).call()
    assert layer.elsa_attention is original
    assert ELSAAttention.forward is forward
    assert layer.pointwise is pointwise
    assert ELSAAttention.__module__ == layer.__name__


def test_times_and_memory_of_real_peers():
    plan = {name: [FORWARD, BOTH] for name in ("elsa", "unfold", "natten")}
    answer = measure.run_job(Job("time", TINY, plan, threads=1, repeats=1))
    assert set(answer.values) >= {"elsa", "unfold"}
    assert all(set(value) == {FORWARD, BOTH} and min(value.values()) > 0 for value in answer.values.values())
    if importlib.util.find_spec("natten") is None:
        assert answer.reasons == {"natten": "not installed"}
    step = measure.run_job(Job("time", Case("training", 32, 32, dtype="bfloat16"), {"elsa": [BOTH]}, repeats=1))
    assert step.values["elsa"][BOTH] > 0


def test_memory_is_what_lives_at_once():
    """In a process of its own: 8 x 12 pixels, unfold holds at least 3 x 49 times the value."""
    case = Case("core", 256, 256, stage=1)
    answer = run_in_child(Job("memory", case, {"elsa": [FORWARD], "unfold": [FORWARD]}), "exact")
    value = 64 * 64 * 96 * 4
    assert answer.values["elsa"][FORWARD] == pytest.approx(value, rel=5.0)
    assert 2 * 49 * value < answer.values["unfold"][FORWARD] < 5 * 49 * value
    assert answer.inputs["elsa"] == value + 64 * 64 * 147 * 4 + 96 * 49 * 4


def test_values_are_compared_with_the_definition():
    case = Case("core", 64, 80, stage=2, batch=2)
    assert measure.run_job(Job("values", case, {"elsa": [FORWARD]})).values["elsa"][BOTH] < 1e-5


# --- child processes and memory ---------------------------------------------------------------------------------------


def test_what_does_not_fit_into_memory_is_skipped_with_the_reason():
    case = Case("core", 2048, 2048, stage=1)
    jobs = []

    def start(job, mode):
        jobs.append((job.kind, job.case.height, job.plan, mode))
        return made_up(job, mode)

    # A probe at 256² foretells the need at 2048²: 64 times as much and 1.2 for safety.
    # unfold: forward 39 MB -> 3.0 GB, with the backward 118 MB -> 9.1 GB; 80 % of 5 GB may be used.
    bench = Runner(Settings(processes=1, modes=(RETAINED,)), start=start, available=lambda device: 5e9)
    found = {(r.peer, r.direction): r for r in bench.measure(case, ["elsa", "unfold"])}
    both = [FORWARD, BOTH]
    assert jobs[0] == ("memory", 256, {"elsa": both, "unfold": both}, "exact")
    assert jobs[1] == ("memory", 2048, {"elsa": both, "unfold": [FORWARD]}, "exact")
    assert jobs[2] == ("time", 2048, {"elsa": both, "unfold": [FORWARD]}, RETAINED)
    assert found["unfold", BOTH].reason == "skipped: needs about 9.1 GB, 5.0 GB are available"
    assert found["unfold", BOTH].seconds == {}
    assert found["unfold", FORWARD].seconds == {RETAINED: [pytest.approx(30e-9 * 2048**2)]}
    assert found["elsa", BOTH].peak == pytest.approx(3 * 10 * 2048**2)
    lines = missing_lines(Records(found.values()))
    assert lines == [f"ELSA by unfold, {BOTH} (core stage 1 2048²): skipped: needs about 9.1 GB, 5.0 GB are available"]


def test_child_processes_get_the_malloc_mode_and_failures_become_reasons(monkeypatch):
    seen = {}

    def run(command, *, input, env, **_):
        seen.update(env=env, job=Job.from_dict(json.loads(input)))
        return subprocess.CompletedProcess(command, seen["code"], stdout=seen["out"], stderr="warning\nKeyError: 'x'\n")

    monkeypatch.setattr(runner.subprocess, "run", run)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")
    job = Job("time", TINY, {"elsa": [FORWARD]}, threads=2)
    seen |= dict(code=0, out="noise\n" + json.dumps(Answer({"elsa": {FORWARD: 1.0}}).to_dict()) + "\n")
    assert run_in_child(job, RETAINED).values == {"elsa": {FORWARD: 1.0}}
    assert seen["job"] == job
    malloc = {key: value for key, value in seen["env"].items() if key.startswith("MALLOC_")}
    assert malloc == {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": "20000000000",
        "MALLOC_TOP_PAD_": "268435456",
    }
    assert seen["env"]["OMP_NUM_THREADS"] == "2"
    run_in_child(job, DEFAULT)
    assert not [key for key in seen["env"] if key.startswith("MALLOC_")]
    seen["code"] = 1
    assert run_in_child(job, DEFAULT).reasons == {"elsa": "KeyError: 'x'"}
    seen["code"] = -9
    assert run_in_child(job, DEFAULT).reasons == {"elsa": "the process was ended by SIGKILL, probably out of memory"}


# --- the tool ---------------------------------------------------------------------------------------------------------


def test_the_tool_from_its_command_line(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(runner, "run_in_child", made_up)
    arguments = ["--what", "core", "--sizes", "64", "128", "--stages", "1", "--peers", "elsa", "unfold"]
    arguments += ["--processes", "2", "--threads", "1"]
    files = ["--json", str(tmp_path / "out" / "a.json"), "--figure", str(tmp_path / "out" / "a.png")]
    assert tool.main([*arguments, *files]) == 0
    out = capsys.readouterr().out
    assert "core stage 1 64²" in out
    assert "(30×)" in out
    assert "ISA " + torch.backends.cpu.get_cpu_capability() in out
    document = json.loads((tmp_path / "out" / "a.json").read_text())
    assert document["settings"]["modes"] == [RETAINED, DEFAULT]
    assert document["machine"]["torch"] == torch.__version__
    assert document["goals"] == []
    first = document["records"][0]
    assert first["case"] == dict(level="core", height=64, width=64, stage=1, batch=1, dtype="float32", device="cpu")
    assert first["seconds"] == {mode: [pytest.approx(64 * 64e-9)] * 2 for mode in (RETAINED, DEFAULT)}
    assert first["peak"] == pytest.approx(10 * 64 * 64)
    assert (tmp_path / "out" / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_the_tool_judges_the_goals(tool, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(runner, "run_in_child", made_up)
    monkeypatch.setattr(runner, "available_bytes", lambda device: 1e12)
    assert tool.main(["--goals", "--quick", "--threads", "2", "--json", str(tmp_path / "a.json")]) == 0
    assert "C12" in capsys.readouterr().out
    goals = json.loads((tmp_path / "a.json").read_text())["goals"]
    assert {row["goal"] for row in goals} == {f"C{i}" for i in range(1, 13)}
    monkeypatch.setitem(SPEED, "timm", 0.9)
    assert tool.main(["--goals", "--quick", "--threads", "2"]) == 1
    assert "not met: C8 forward, C8 f+b" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sizes", "0"], "such as 512 or 800x1333"),
        (["--goals", "--sizes", "64"], "the goals fix"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--what", "module", "--peers", "natten"], "none of them is compared at module"),
    ],
)
def test_mistakes_on_the_command_line(tool, arguments, message, capsys):
    with pytest.raises(SystemExit) as stop:
        tool.main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_an_interrupted_run_shows_what_was_measured(tool, monkeypatch, tmp_path, capsys):
    def start(job, mode):
        if job.case.height == 128:
            raise KeyboardInterrupt
        return made_up(job, mode)

    monkeypatch.setattr(runner, "run_in_child", start)
    arguments = ["--what", "core", "--sizes", "64", "128", "--stages", "1", "--peers", "elsa", "--threads", "1"]
    assert tool.main([*arguments, "--json", str(tmp_path / "a.json")]) == 130
    assert "interrupted" in capsys.readouterr().out
    records = json.loads((tmp_path / "a.json").read_text())["records"]
    assert [bool(record["seconds"]) for record in records] == [True, True, False, False]


def test_tables_and_figure_show_the_numbers():
    cases = [Case("core", side, side, stage=1) for side in (256, 512)]
    rows = [
        record(peer, [factor * case.pixels * 1e-8], direction, case, peak=factor * case.pixels)
        for case in cases
        for direction in (FORWARD, BOTH)
        for peer, factor in (("elsa", 1.0), ("unfold", 25.0))
    ]
    text = text_of(times_table(Records(rows), "core", (RETAINED,)))
    assert "0.655" in text  # 256² * 10 ns in ms
    assert "16.4 (25×)" in text
    figure = growth_figure(Records(rows), RETAINED, title="title", note="note")
    assert len(figure.axes) == 4
    lines = {line.get_label(): line for line in figure.axes[0].lines}
    assert lines["ELSA by unfold"].get_xdata().tolist() == [256**2, 512**2]
    assert lines["ELSA by unfold"].get_ydata().tolist() == pytest.approx([25e-8 * 256**2, 25e-8 * 512**2])
    assert [tick.get_text() for tick in figure.axes[2].get_xticklabels()] == ["256²", "512²"]
    with pytest.raises(ValueError, match="nothing was measured"):
        growth_figure(Records(), RETAINED)


def test_machine_line_states_what_figures_depend_on():
    described = dict(cpu="A CPU", cpu_family_model="family 6", isa="AVX2", bf16_units=["amx_bf16"], cpus=4, threads=2)
    described |= dict(torch="2.9", load=0.0, operator="compiled", repeats=9, processes=3)
    assert machine_line(described) == (
        "A CPU (family 6) · ISA AVX2 + amx_bf16 · 2 of 4 threads · torch 2.9 · operator: compiled · "
        "median of 9, worst of 3 processes"
    )


def test_a_busy_machine_is_named(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert busy_warning(0.9) == ""
    assert "load 1.1 on 4 CPUs" in busy_warning(1.1)


def test_the_largest_of_several_readings_of_a_small_peak_counts(monkeypatch):
    peaks = [300, 390, 320, 10, 20, 30, 40, 900]
    monkeypatch.setattr(measure, "reset_peak", lambda device: 1000)
    monkeypatch.setattr(measure, "peak_bytes", lambda device: 1000 + peaks.pop(0))
    assert measure._peak_of(lambda: None, "cpu") == 390
    assert peaks == [900]
    peaks[:] = [60_000_000, 70_000_000]
    assert measure._peak_of(lambda: None, "cpu") == 60_000_000


def test_the_figure_of_goals_shows_what_grows():
    rows = [
        record("elsa", [1.0], direction, Case("core", side, side, stage=stage), peak=1e6)
        for stage in (1, 2, 3)
        for direction in (FORWARD, BOTH)
        for side in (256, 512)
    ]
    rows += [record(name, [2.0], FORWARD, Case("core", 512, 512, stage=1)) for name in ("unfold", "window")]
    rows.append(record("elsa", [3.0], FORWARD, Case("backbone", 512, 512)))
    figure = growth_figure(Records(rows), RETAINED)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert titles == ["core, stage 1: forward", "core, stage 1: forward + backward", "", ""]
    assert [line.get_label() for line in figure.axes[0].lines] == ["ELSA"]
    assert "further stages" in figure.get_supxlabel()
    assert len(growth_figure(Records(rows[-1:]), RETAINED).axes) == 1


def test_every_peer_has_a_label():
    from elsa_det.benchmark.peers import LABELS, USUAL

    names = {name for level in BUILDERS.values() for name in level}
    assert names == set(LABELS)
    assert all(set(USUAL[level]) <= set(BUILDERS[level]) for level in BUILDERS)
    assert os.path.exists(TOOL)
