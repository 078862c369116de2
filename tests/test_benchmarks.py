"""The benchmarks run, and what they write can be read: not how fast anything is."""

import dataclasses
import json
import math
import os
import sys
import time
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import charts, cli, guard, instructions, neighbours, peers, plan, tables, targets, workloads
from benchmarks.results import Result, Run, read

linux = pytest.mark.skipif(sys.platform != "linux", reason="the harness reads Linux's process clocks")


@pytest.fixture
def made_up() -> Run:
    """A run with known figures: asyncserver 1.2 times the raw protocol, trio missing, gevent failed."""
    run = Run(
        started="2026-01-02T03:04:05+00:00",
        settings={
            "rounds": 2, "seconds_per_sample": 1.0, "quick": False, "server_core": 0, "load_core": 1, "load": "C",
        },
        machine={"cpu": "a <fast> one", "cores": 2, "kernel": "Linux 6", "python": "CPython 3.13.0"},
        peers={
            name: {"title": name, "ours": "asyncserver" in name, "versions": {}, "missing": None}
            for name in ("asyncserver-uvloop", "protocol-uvloop", "gevent")
        },
        workloads={"tcp-64": {"title": "TCP echo", "unit": "us"}},
    )  # fmt: skip
    run.peers["trio"] = {"title": "trio", "ours": False, "versions": {}, "missing": "trio not installed"}
    run.results = [
        Result("tcp-64", "asyncserver-uvloop", [{"value": 14.0}, {"value": 12.0, "p50_us": 3.0}]),
        Result("tcp-64", "protocol-uvloop", [{"value": 10.0}, {"value": 11.0}]),
        Result("tcp-64", "gevent", error="it fell over"),
    ]
    return run


@linux
@pytest.mark.parametrize("more", [[], ["--python-load"]], ids=["compiled load", "python load"])
def test_harness_measures_a_peer_and_writes_valid_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    """One workload on one peer: the JSON holds a sample, a cold sample and the machine; the table names the peer."""
    target = tmp_path / "run.json"
    words = ["--workload", "tcp-64", "--peer", "protocol-asyncio", "--rounds", "1", "--seconds", "0.1"]
    assert cli.main([*words, *more, "--json", str(target), "--page", str(tmp_path / "page")]) == 0
    assert "asyncio.Protocol, asyncio" in (tmp_path / "page" / "README.md").read_text()
    run = read(target)
    (result,) = run.results
    assert (result.workload, result.peer, result.error) == ("tcp-64", "protocol-asyncio", None)
    (sample,) = result.samples
    assert sample["operations"] > 100
    assert 0 < sample["value"] < 10_000
    assert sample["lost_percent"] == 0
    assert sample["p50_us"] <= sample["p99_us"]
    assert len(result.cold) == 1
    assert run.machine["python"].endswith(sys.version.split()[0])
    told = capsys.readouterr()
    assert "asyncio.Protocol, asyncio" in told.out
    assert "1 workloads, 1 contenders, 1 samples of 0.1 s" in told.err
    assert "[0/1 samples, " in told.err


@linux
@pytest.mark.parametrize("more", [[], ["--python-load"]], ids=["compiled load", "python load"])
def test_broadcasts_reach_all_connections(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    """Of our server and of those it is compared with; the load generator fails if one misses any."""
    # It connects 1,000 times, one after the other, and where other programs run waits for its turn each time.
    monkeypatch.setattr("benchmarks.measuring.PATIENCE", 60.0)
    target = tmp_path / "run.json"
    words = ["--workload", "broadcast", "--peer", "asyncserver-asyncio", "--peer", "streams-asyncio", "--peer", "epoll"]
    assert cli.main([*words, *more, "--rounds", "1", "--seconds", "0.1", "--json", str(target)]) == 0
    results = read(target).results
    assert [result.error for result in results] == [None] * 3
    assert all(result.samples[0]["operations"] >= 1 and not result.samples[0]["lost_percent"] for result in results)


@linux
@pytest.mark.parametrize(
    ("late", "samples", "note"),
    [
        ("is_behind", 1, "some figures are from fewer samples"),
        ("is_over", 0, "time was over: 3 samples were not taken"),
    ],
)
def test_quick_run_that_is_late_takes_fewer_samples_and_says_so(
    late: str, samples: int, note: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First what has been measured is not measured again; when time is over, the rest is left out."""
    monkeypatch.setattr(plan.Pace, late, lambda self: True)
    target = tmp_path / "run.json"
    words = ["--quick", "--workload", "tcp-64", "--peer", "protocol-asyncio", "--seconds", "0.05"]
    assert cli.main([*words, "--json", str(target)]) == 0
    run = read(target)
    assert sum(len(result.samples) for result in run.results) == samples
    assert any(note in line for line in run.notes)


def test_quick_mode_fits_into_three_minutes() -> None:
    """By its own plan, which is that of an idle machine, there is time to spare for a busy one; as the page says."""
    settings = plan.Settings(rounds=3, seconds=0.1, warm_up=500, quick=True)
    who, work = peers.select([], quick=True), workloads.select([], quick=True)
    planned = plan.stages(who, work, settings)
    assert 300 < sum(stage.samples for stage in planned) < 450
    assert sum(stage.seconds for stage in planned) < plan.QUICK_GOAL < plan.QUICK_LIMIT == 180
    told = f"{len(who)} of {len(peers.PEERS)} contenders in {len(work)} of {len(workloads.WORKLOADS)} workloads"
    assert told in (Path(plan.__file__).parent / "README.md").read_text()


def test_plan_is_what_a_full_run_does() -> None:
    """Each contender does each workload once a round, programs too."""
    settings = plan.Settings(rounds=2)
    chosen = [peer for peer in peers.PEERS if peer.name in {"socketserver", "compat"}]
    planned = plan.stages(
        chosen, workloads.select(["tcp-64", "connect", "legacy-udp", "shutdown"], quick=False), settings
    )
    assert [(stage.title, stage.samples) for stage in planned] == 2 * [
        ("TCP echo, 64 B, 64 connections", 4),
        ("Legacy handler: datagrams, 64 sockets", 2),
        ("shutdown() of an idle server", 2),
    ]
    assert planned[0].contenders == planned[3].contenders[::-1]


def test_pace_tells_what_is_left_at_the_speed_so_far() -> None:
    """Half of a plan of 10 s done in 20 s: 20 s are left; what is left out is not done, and not left either."""
    work = dataclasses.replace(workloads.select(["tcp-64"], quick=False)[0], connections=1)
    settings = plan.Settings(rounds=1, seconds=10)
    pace = plan.Pace([plan.Stage((work,), ("one",), (), 1, settings)], quick=False)
    assert (pace.samples, pace.planned) == (1, 10 + plan.AROUND)
    pace.advance(5, 0)
    pace.begun -= 20
    assert pace.left() == pytest.approx(20, abs=1)
    pace.drop(5, 1)
    assert pace.left() == pytest.approx(0, abs=1)
    assert not (pace.is_behind() or pace.is_over())
    quick = plan.Pace([], quick=True)
    for late, verdict in ((0, (False, False)), (plan.QUICK_SLACK, (True, False)), (plan.QUICK_LIMIT, (True, True))):
        quick.begun = time.monotonic() - late - 0.1
        assert (quick.is_behind(), quick.is_over()) == verdict


def test_quick_memory_says_how_many_connections_it_opens() -> None:
    """Its title has the number of this run."""
    for quick, number in ((True, "2,000"), (False, "5,000")):
        (memory,) = workloads.select(["memory"], quick=quick)
        assert f"{memory.connections:,}" == number
        assert number in memory.title


@linux
def test_other_programs_are_warned_of() -> None:
    """What they take of our cores is counted, stolen time too, but neither waiting nor interrupts."""
    tick = 1 / os.sysconf("SC_CLK_TCK")
    stat = "cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 100 100 50 50 4 0 0\ncpu1 7 0 0 0 0 0 0 0 0 0\nintr 5\n"
    assert neighbours.busy_seconds(stat, {0}) == pytest.approx(10 * tick)
    assert neighbours.busy_seconds(stat, {0, 1}) == pytest.approx(17 * tick)
    assert neighbours.now(0.01) >= 0
    assert cli.crowded(neighbours.QUIET) == ""
    assert "other programs use 1.3 of the" in cli.crowded(1.3)


def test_samples_that_stray_are_warned_of(made_up: Run) -> None:
    """Best and worst differ by half: the text says who it was."""
    assert "differ by half" not in tables.text(made_up)
    made_up.result("tcp-64", "protocol-uvloop").samples.append({"value": 15.0})
    assert "differ by half or more, so compare with care: tcp-64 (protocol-uvloop)" in tables.text(made_up)


@linux
def test_server_that_cannot_start_is_reported_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A broken peer does not end the run, and the table says what it said."""
    peer = peers.select(["protocol-asyncio"])[0]
    broken = dataclasses.replace(peer, name="broken", title="Broken", arguments=("--loop", "none"))
    monkeypatch.setattr(peers, "PEERS", (broken,))
    words = ["--workload", "tcp-64", "--peer", "broken", "--rounds", "1", "--json", str(tmp_path / "run.json")]
    assert cli.main(words) == 0
    (result,) = read(tmp_path / "run.json").results
    assert result.error is not None
    assert "invalid choice: 'none'" in result.error
    assert "invalid choice: 'none'" in capsys.readouterr().out


def test_missing_peer_is_named_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution that is not installed makes a peer missing, not absent."""
    peer = dataclasses.replace(peers.PEERS[0], requires=("no-such-distribution",))
    assert "no-such-distribution not installed" in (peer.missing() or "")


@pytest.mark.parametrize("words", [["--peer", "nobody"], ["--workload", "nothing"]])
def test_unknown_names_are_refused_with_the_known_ones(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The error lists what there is."""
    with pytest.raises(SystemExit):
        cli.main(words)
    assert "there are: " in capsys.readouterr().err


def test_best_first_and_failures_last(made_up: Run) -> None:
    """The order of a table is that of the best rounds; nobody is left out."""
    assert [result.peer for result in made_up.of("tcp-64")] == ["protocol-uvloop", "asyncserver-uvloop", "gevent"]
    text = tables.text(made_up)
    assert "failed: it fell over" in text
    assert "trio not installed" in text


def test_figures_of_a_result(made_up: Run) -> None:
    """Best and worst are over the rounds, the others come from the best round."""
    result = made_up.result("tcp-64", "asyncserver-uvloop")
    assert (result.best, result.worst, result.beside("p50_us")) == (12.0, 14.0, 3.0)
    assert math.isnan(result.best_cold)


@pytest.mark.parametrize(
    ("target", "value", "verdict"),
    [
        (targets.Target("tcp-64", "asyncserver-uvloop", 1.3, "protocol-uvloop"), 1.2, "met"),
        (targets.Target("tcp-64", "asyncserver-uvloop", 1.1, "protocol-uvloop"), 1.2, "missed"),
        (targets.Target("tcp-64", "asyncserver-uvloop", 5, "protocol-uvloop", minus=True), 2.0, "met"),
        (targets.Target("tcp-64", "asyncserver-uvloop", 10), 12.0, "missed"),
        (targets.Target("tcp-64", "asyncserver-uvloop", 1.3, "gevent"), math.nan, "not measured"),
        (targets.Target("tcp-64", "asyncserver-uvloop", 1.1, "cold"), math.nan, "not measured"),
    ],
)
def test_targets_compare_best_rounds(made_up: Run, target: targets.Target, value: float, verdict: str) -> None:
    """Ratio, difference and bare figure; what was not measured is neither met nor missed."""
    assert target.value(made_up) == pytest.approx(value, nan_ok=True)
    assert target.verdict(made_up) == verdict


def test_targets_name_known_peers_and_workloads() -> None:
    """A renamed peer or workload cannot silently turn a target into `not measured`."""
    names = {peer.name for peer in peers.select([], quick=True)}
    quick = {workload.name: workload for workload in workloads.select([], quick=True)}
    for target in targets.TARGETS:
        assert target.workload in quick
        if quick[target.workload].mode != "import":
            assert {target.peer, target.against} - {"", "cold"} <= names


def test_report_makes_markdown_and_charts_that_parse(made_up: Run, tmp_path: Path) -> None:
    """The report holds the targets, every peer, and a well-formed chart for both colour schemes."""
    made_up.save(tmp_path / "run.json")
    assert cli.main(["report", str(tmp_path / "run.json")]) == 0
    markdown = (tmp_path / "README.md").read_text()
    assert "![TCP echo](tcp-64.svg)" in markdown
    assert "failed: it fell over" in markdown
    drawing = (tmp_path / "tcp-64.svg").read_text()
    assert ET.fromstring(drawing).tag.endswith("svg")
    assert "prefers-color-scheme: dark" in drawing
    assert "1.20 x" in drawing


def test_no_chart_for_a_single_peer(made_up: Run) -> None:
    """One bar compares nothing."""
    made_up.results = made_up.results[:1]
    assert charts.chart(made_up, "tcp-64") is None


def test_results_of_another_format_are_refused(tmp_path: Path) -> None:
    """An old file is not misread."""
    (tmp_path / "old.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="not a result of format"):
        read(tmp_path / "old.json")


def test_pages_of_several_interpreters_link_to_each_other(made_up: Run, tmp_path: Path) -> None:
    """One below another: whichever is made last, both know of it."""
    above, below = tmp_path / "results", tmp_path / "results/3.15"
    below.mkdir(parents=True)
    made_up.save(above / "full.json")
    cli.write_page(above / "full.json", above)
    assert "The same with" not in (above / "README.md").read_text()
    made_up.machine["python"] = "CPython 3.15.2"
    made_up.save(below / "full.json")
    cli.write_page(below / "full.json", below)
    assert "The same with [CPython 3.15.2](3.15/README.md)." in (above / "README.md").read_text()
    assert "The same with [CPython 3.13.0](../README.md)." in (below / "README.md").read_text()
    assert "(tcp-64.svg)" in (above / "README.md").read_text()


def test_samples_are_few_and_short(capsys: pytest.CaptureFixture[str]) -> None:
    """Three of 0.4 s, unless more are asked for."""
    for words, seconds in (([], 0.4), (["--quick"], 0.1), (["--seconds", "2"], 2)):
        cli.main(["--dry-run", "--peer", "asyncserver-asyncio", "--workload", "tcp-64", *words])
        assert f"3 samples of {seconds:g} s" in capsys.readouterr().err


def test_guard_tolerates_little_and_reports_both_directions() -> None:
    """More, less, new; and within the tolerance the same."""
    stored = {"bytecodes": 100.0, "calls": 100.0, "bytes": 100.0}
    for counted, verdict in (
        ({"bytecodes": 102.0, "calls": 98.0, "bytes": 91.0}, "same"),
        ({"bytecodes": 104.0, "calls": 104.0, "bytes": 111.0}, "more"),
        ({"bytecodes": 96.0, "calls": 96.0, "bytes": 89.0}, "less"),
        ({"blocks": 1.0}, "new"),
    ):
        assert dict(guard.compare(stored, counted)) == dict.fromkeys(counted, verdict)


@linux
@pytest.mark.skipif(sys.version_info < (3, 12), reason="sys.monitoring came with Python 3.12")
def test_guard_counts_repeat(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Stored, counted again and compared: the same; with another figure in the store: a failure."""
    monkeypatch.setattr(guard, "STORE", tmp_path / "guard.json")
    case = "asyncserver message asyncio"
    assert guard.main(["--case", case, "--update"]) == 0
    assert guard.main(["--case", case]) == 0
    store = json.loads(Path(guard.STORE).read_text())
    store[guard.version()][case]["bytecodes"] *= 0.9
    guard.STORE.write_text(json.dumps(store))
    assert guard.main(["--case", case]) == 1


def test_counts_of_another_patch_version_are_told_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They differ there without our doing; stored again, this version's take their place."""
    monkeypatch.setattr(guard, "STORE", tmp_path / "guard.json")
    monkeypatch.setattr(guard, "version", lambda: "3.13.5")
    monkeypatch.setattr(guard, "measure", lambda case: {"calls": 20.0})
    monkeypatch.setattr(sys, "version_info", (3, 13, 5))
    case = guard.CASES[0]
    others = {"3.12.1": {case: {"calls": 30.0}}, "3.13.0": {case: {"calls": 10.0}}}
    guard.STORE.write_text(json.dumps(others))
    assert guard.main(["--case", case]) == 0
    told = capsys.readouterr().out
    assert "more" in told
    assert "This is Python 3.13.5, the counts are those of 3.13.0" in told
    assert guard.main(["--case", case, "--update"]) == 0
    now = {"3.12.1": others["3.12.1"], "3.13.5": {case: {"calls": 20.0}}, "compiled": {}}
    assert json.loads(guard.STORE.read_text()) == now


def test_instructions_of_another_compiler_are_told_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are a failure where all is the same but our code, told elsewhere, and left out where they cannot be had."""
    case, stored = "compiled message uvloop", {"3.13.0 (GCC 12)": {"compiled message uvloop": {"instructions": 100.0}}}
    monkeypatch.setattr(guard, "STORE", tmp_path / "guard.json")
    guard.STORE.write_text(json.dumps({"compiled": stored}))
    monkeypatch.setattr(instructions, "missing", lambda: None)
    monkeypatch.setattr(instructions, "measure", lambda loop, kinds: {"message": 110.0})
    for build, status in (("3.13.0 (GCC 12)", 1), ("3.13.0 (GCC 13)", 0), ("3.14.0 (GCC 12)", 0)):
        monkeypatch.setattr(instructions, "build", lambda build=build: build)
        assert guard.main(["--case", case]) == status
        assert ("nothing here is a failure" in capsys.readouterr().out) == (status == 0)
    assert guard.main(["--case", case, "--update"]) == 0
    now = json.loads(guard.STORE.read_text())["compiled"]
    assert now == stored | {"3.14.0 (GCC 12)": {case: {"instructions": 110.0}}}
    monkeypatch.setattr(instructions, "missing", lambda: "valgrind is not installed")
    assert guard.main(["--case", case]) == 0
    assert "not counted, valgrind is not installed" in capsys.readouterr().out


@pytest.mark.skipif(instructions.missing() is not None, reason=str(instructions.missing()))
@pytest.mark.timeout(300)
def test_instructions() -> None:
    """A message takes thousands of them in the compiled build; in pure Python it would be more."""
    assert 2_000 < instructions.measure("uvloop", ["message"])["message"] < 16_000
