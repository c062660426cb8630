"""What a profile's bytes become: times, a summary, a trace that others open, a picture. Of made-up profiles, whose
numbers are known, and of the executor's."""

import json
import re
import struct
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_here import run_cli_here
from onewave import _core
from onewave._prediction import Bar
from onewave.trace import PHASES, Run, Trace
from onewave.trace.records import read_run

BEGIN_NS = 1 << 60
# Of the SM, at 2 clocks a nanosecond.
BEGIN_CLOCK = 1 << 40


def pack(record: str, **values: Any) -> bytearray:
    size, fields = _core.profile_layout()[record]
    data = bytearray(size)
    for name, code, offset in fields:
        struct.pack_into("<" + code, data, offset, values.pop(name, 0))
    assert not values
    return data


def pack_item(tracks: list[tuple[int, int, dict[str, int]]], **fields: int) -> bytearray:
    """`tracks`: begin, end and cycles by phase, each in clocks."""
    own = {name: fields.pop(name) for name in ("kv_head", "num_heads", "is_wide") if name in fields}
    data = pack("ItemProfile", **own)
    for name, code, offset in _core.plan_layout()["WorkItem"][1]:
        struct.pack_into("<" + code, data, offset, fields.pop(name, 0))
    assert not fields
    size, _ = _core.profile_layout()["ProfileTrack"]
    for i, (begin, end, cycles) in enumerate(tracks):
        at = _core.PROFILE_TRACKS_OFFSET + i * size
        struct.pack_into("<II", data, at, begin, end)
        counts = [cycles.get(phase, 0) for phase in PHASES]
        struct.pack_into(f"<{len(PHASES)}I", data, at + _core.PROFILE_CYCLES_OFFSET, *counts)
    return data


def pack_cta(begin_us: int, end_us: int, sm: int, num_items: int) -> bytearray:
    return pack(
        "CtaProfile",
        begin_ns=BEGIN_NS + 1000 * begin_us,
        end_ns=BEGIN_NS + 1000 * end_us,
        begin_clock=BEGIN_CLOCK,
        end_clock=BEGIN_CLOCK + 2000 * (end_us - begin_us),
        sm=sm,
        num_items=num_items,
    )


def made_up_run() -> Run:
    """Two CTAs at work, of three: one has two wide items of 4 us, of which the second warpgroup's tracks are 1 us late, and
    two that got lost; the other began 2 us later and has two splits of 4 us."""
    nobody = bytes(_core.profile_layout()["ItemProfile"][0])
    wide = [
        pack_item(
            [
                (begin, begin + 8000, {"products": 6000}),
                (begin + 2000, begin + 10000, {"wait for keys": 5000}),
            ],
            request=7,
            num_rows=128,
            kv_end=256,
            num_heads=1,
            split_tile=-1,
            is_wide=1,
        )
        for begin in (0, 8000)
    ]
    narrow = [
        pack_item(
            [(begin, begin + 8000, {"merge": 800})] * 2, num_rows=4, kv_end=512, num_heads=4, split_idx=i
        )
        for i, begin in enumerate((0, 8000))
    ]
    header = pack(
        "ProfileHeader",
        magic=_core.PROFILE_MAGIC,
        version=_core.PROFILE_VERSION,
        num_ctas=3,
        max_items=2,
        num_tracks=2,
        window=1,
    )
    ctas = [pack_cta(0, 10, 5, 4), pack_cta(0, 0, 6, 0), pack_cta(2, 10, 3, 2)]
    # Of 4 items of the first CTA there is room for 2.
    items = [*wide, nobody, nobody, *narrow]
    run = read_run(torch.frombuffer(bytearray().join([header, *ctas, *items]), dtype=torch.uint8), "layer 0")
    assert run is not None
    return run


def test_clocks_become_microseconds() -> None:
    run = made_up_run()
    assert run.begin_ns == BEGIN_NS and run.clock_mhz == pytest.approx(2000)
    assert [(cta.begin_us, cta.end_us, cta.sm) for cta in run.ctas] == [(0, 10, 5), (0, 0, 6), (2, 10, 3)]
    assert [cta.num_lost for cta in run.ctas] == [2, 0, 0]
    (wide, second_wide), (first, second) = run.ctas[0].items, run.ctas[2].items
    assert (wide.kind, first.kind, wide.request, first.num_heads) == ("wide", "narrow, split", 7, 4)
    assert run.window == 1
    spans = [(item.begin_us, item.end_us) for item in (wide, second_wide, first, second)]
    assert spans == [(0.5, 4.5), (4.5, 8.5), (2, 6), (6, 10)]
    assert wide.tracks[0].phases_us == pytest.approx(dict.fromkeys(PHASES, 0.0) | {"products": 3})
    assert wide.tracks[1].phases_us["wait for keys"] == pytest.approx(2.5)


def test_a_buffer_without_a_run() -> None:
    assert read_run(torch.zeros(1000, dtype=torch.uint8), "x") is None


def test_the_summary_of_a_made_up_run() -> None:
    run = made_up_run()
    prediction = (
        Bar(0, "wide", 0.0, 8.0),
        Bar(2, "narrow, split", 0.0, 4.0),
        Bar(2, "narrow, split", 4.0, 5.0),
    )
    summary = Trace([replace(run, prediction=prediction)]).summary()
    assert (summary.us, summary.num_ctas, summary.num_working) == (10, 3, 2)
    assert (summary.num_items, summary.num_lost) == (4, 2)
    shares = {"narrow": 0, "narrow, split": 8 / 30, "wide": 8 / 30, "wide, split": 0}
    assert summary.busy == pytest.approx(shares) and summary.idle == pytest.approx(14 / 30)
    assert summary.phases["narrow, split"]["merge"] == pytest.approx(0.1)
    assert summary.phases["wide"]["products"] == pytest.approx(3 / 8)
    # From the first item's begin on, on average of its tracks.
    assert summary.measured_us == pytest.approx(9.5) and summary.imbalance == pytest.approx(1.0)
    assert summary.predicted_us == 9 and summary.prediction_error == pytest.approx(9 / 9.5 - 1)
    assert summary.cta_error == pytest.approx((1.5 + 0.5) / 2 / 9.5)


def test_an_imbalance() -> None:
    run = made_up_run()
    early = replace(run.ctas[2], end_us=6.5)
    assert Trace([replace(run, ctas=(run.ctas[0], early))]).summary().imbalance == pytest.approx(9.5 / 7.75)


def events_of(path: Path, phase: str) -> list[dict[str, Any]]:
    return [event for event in json.loads(path.read_text())["traceEvents"] if event["ph"] == phase]


def test_slices_of_a_trace_nest(tmp_path: Path) -> None:
    """Each thread's are one inside another or apart, items have all phases that took time, and times are right."""
    run = made_up_run()
    prediction = (Bar(0, "wide", 0.0, 8.0),)
    file = tmp_path / "folder" / "trace.json"
    Trace([replace(run, prediction=prediction)]).write(file)
    slices = events_of(file, "X")
    names = {event["args"]["name"] for event in events_of(file, "M") if event["name"] == "process_name"}
    assert names == {"layer 0", "layer 0, predicted"}
    assert not [event for event in slices if "," in event["cat"]]
    threads = {(event["pid"], event["tid"]) for event in slices}
    for thread in threads:
        open_ends: list[float] = []
        ours = [event for event in slices if (event["pid"], event["tid"]) == thread]
        for event in sorted(ours, key=lambda event: (event["ts"], -event["dur"])):
            begin_ns, end_ns = round(1000 * event["ts"]), round(1000 * (event["ts"] + event["dur"]))
            while open_ends and open_ends[-1] <= begin_ns:
                open_ends.pop()
            assert not open_ends or end_ns <= open_ends[-1]
            open_ends.append(end_ns)
    (item,) = [
        event for event in slices if event["name"] == "narrow request 0 split 1" and event["tid"] == 100_004
    ]
    assert (item["ts"], item["dur"]) == (pytest.approx(6), pytest.approx(4))
    assert item["args"]["keys"] == "0..512" and item["args"]["merge, us"] == pytest.approx(0.4)
    counters = [event["args"] for event in events_of(file, "C")]
    assert max(counter["wide"] for counter in counters) == 1 and counters[-1] == {"narrow": 0, "wide": 0}


def test_the_public_trace_processor_opens_a_trace(tmp_path: Path) -> None:
    """Its package brings a program from the network, which CI has not."""
    processor = pytest.importorskip("perfetto.trace_processor")
    file = tmp_path / "trace.json"
    Trace([made_up_run()]).write(file)
    try:
        trace = processor.TraceProcessor(trace=str(file))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no trace processor: {error}")
    with trace:
        query = "select category, count(*) as n, sum(dur) as ns from slice group by category"
        rows = {row.category: (row.n, row.ns) for row in trace.query(query)}
        (errors,) = trace.query("select sum(value) as n from stats where severity = 'error'")
    assert rows["narrow split"] == (4, 16_000) and rows["wide"] == (4, 16_000)
    assert errors.n in (0, None)


def test_the_command_of_a_profile(tmp_path: Path) -> None:
    trace, png, svg = tmp_path / "trace.json", tmp_path / "trace.png", tmp_path / "trace.svg"
    files = ("--output", str(trace), "--plot", str(png), "--plot", str(svg))
    shape = ("--num-qo-heads", "4", "--num-kv-heads", "1", "--head-dim", "64", "--num-ctas", "4")
    done = run_cli_here("profile", "600:1x4", "300:200", *shape, "--device", "cpu", "--layers", "2", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 x (600, 1) + 1 x (300, 200), 4/1 heads" in done.stdout and "of that products" in done.stdout
    names = [event["args"]["name"] for event in events_of(trace, "M") if event["name"] == "process_name"]
    assert names == ["run 0", "run 1"]
    assert png.read_bytes().startswith(b"\x89PNG")
    num_items = int(re.findall(r"(\d+)\s+items", done.stdout)[0])
    assert num_items < len(re.findall(r'id="patch_\d+"', svg.read_text())) < num_items + 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cpu"), "give requests, --json or --workload"),
        (("1:1", "--device", "cpu", "--graph"), "--graph needs a GPU"),
        (("1:1", "--device", "cpu", "--layers", "0"), "layers is 0; it must be"),
        (("1:1", "--device", "tpu"), "device is 'tpu'"),
        (("1:1", "--device", "cpu", "--head-dim", "100"), "head_dim"),
        (("1:1", "--device", "cpu", "--output", "/dev/null/x"), "/dev/null"),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], message: str) -> None:
    done = run_cli_here("profile", *arguments)
    assert done.returncode == 2 and message in " ".join(done.stdout.split())
