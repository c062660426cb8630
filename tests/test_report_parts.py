"""What the benchmark's page is made of: workloads that scale, curves, families, colours."""

from collections import Counter
from dataclasses import replace

import pytest
from onewave.bench.report.families import FAMILIES, ORDER, by_family
from onewave.bench.report.palette import INK, LOOKS, MUTED, OTHER_LOOKS, PAPER, Palette
from onewave.bench.report.series import (
    AXES,
    BATCH_SIZE,
    CHUNK_SIZE,
    PAGE_SIZE,
    SEQUENCE_LENGTH,
    Axis,
    find_series,
)
from onewave.bench.report.tables import EMPTY, ratio_cell
from onewave.bench.result import Result, WorkloadResult
from onewave.bench.workload import Request, Workload
from onewave.bench.workloads import WORKLOADS, default_workloads, report_workloads, select_workloads


def unmeasured(*workloads: Workload) -> list[WorkloadResult]:
    return [WorkloadResult(workload, []) for workload in workloads]


def places(*workloads: Workload) -> list[tuple[Axis, list[int]]]:
    return [(curve.axis, [x for x, _ in curve.sorted()]) for curve in find_series(unmeasured(*workloads))]


def test_scaling_families_are_curves() -> None:
    """Each of them is one of these and of nothing else, by itself."""
    powers = [2**i for i in range(18)]
    assert places(*select_workloads(["scaling/batch/*"])) == [(BATCH_SIZE, powers[:9])]
    assert places(*select_workloads(["scaling/length/*"])) == [
        (SEQUENCE_LENGTH, powers[10:18]),
        (SEQUENCE_LENGTH, powers[9:16]),
    ]
    assert places(*select_workloads(["scaling/page/*"])) == [(PAGE_SIZE, [1, 8, 16, 64])] * 2
    assert places(*select_workloads(["scaling/chunk/*"])) == [(CHUNK_SIZE, powers[8:14])]


def test_a_report_has_every_axis_and_not_too_much() -> None:
    for device, num_scaling in (("cuda", 38), ("cpu", 12)):
        workloads = report_workloads(device)
        scaling = [workload for workload in workloads if "/" in workload.name]
        assert len(scaling) == num_scaling and len({w.name for w in workloads}) == len(workloads)
        assert {axis for axis, _ in places(*scaling)} == set(AXES)
    assert report_workloads("cuda")[: len(default_workloads())] == default_workloads()
    assert max(w.num_bytes for w in report_workloads("cuda")) < 10e9
    assert sum(w.num_flop for w in report_workloads("cpu")) < 2e9


def test_scaling_families_are_only_by_name() -> None:
    assert not [
        workload for workload in default_workloads() if workload.name.startswith(("scaling", "smoke"))
    ]
    assert all("/" not in workload.name for workload in select_workloads(["*"]))
    assert len(select_workloads(["scaling/*"])) == 38


def test_curves_are_of_what_differs_in_one_number() -> None:
    decodes = [Workload(f"d{count}", (Request(512, 1),) * count) for count in (4, 1, 2)]
    assert places(*decodes) == [(BATCH_SIZE, [1, 2, 4])]
    assert places(*decodes[:2]) == []
    others = {"page_size": 1, "num_qo_heads": 16, "causal": False, "window_left": 5, "num_graph_nodes": 2}
    for name, value in others.items():
        assert places(*decodes[:2], replace(decodes[2], **{name: value})) == [], name
    prompts = [Workload(f"p{length}", (Request(length, length),)) for length in (64, 16, 32)]
    assert places(*prompts) == [(SEQUENCE_LENGTH, [16, 32, 64])]
    # A prompt, a chunk of one and a decode are no curve.
    mixture = [prompts[0], Workload("c", (Request(32, 16),)), Workload("d", (Request(16, 1),))]
    assert places(*mixture) == []
    chunks = [Workload(f"c{n}", ((Request(64, 1),) * 2 + (Request(64 + n, n),))) for n in (2, 4, 8)]
    assert places(*chunks) == [(CHUNK_SIZE, [2, 4, 8])]
    assert places(*chunks[:2], Workload("c8", ((Request(64, 1),) * 2 + (Request(40, 8),)))) == []
    assert places(*chunks[:2], Workload("c8", ((Request(64, 1),) * 3 + (Request(72, 8),)))) == []
    assert places(*(replace(chunks[0], page_size=page_size) for page_size in (16, 1, 8))) == [
        (PAGE_SIZE, [1, 8, 16])
    ]


def test_of_two_workloads_at_one_place_the_later_counts() -> None:
    decodes = [Workload(f"d{count}", (Request(512, 1),) * count) for count in (1, 2, 4)]
    (curve,) = find_series(unmeasured(*decodes, replace(decodes[1], name="again")))
    assert [result.workload.name for _, result in curve.sorted()] == ["d1", "again", "d4"]
    assert curve.title == "decodes behind 512 tokens; 32/8 heads, head_dim 128, page 16, causal"


def test_every_workload_has_one_family() -> None:
    families = by_family(unmeasured(*WORKLOADS.values()))
    assert [family.family.key for family in families] == list(ORDER)
    assert {family.key for family in FAMILIES} == set(ORDER)
    where = {result.workload.name: f.family.key for f in families for result in f.results}
    assert len(where) == len(WORKLOADS)
    assert Counter(where.values())["mixed"] == 9
    examples = {
        "hybrid_qwen7b_p16": "mixed",
        "spec_b48_q5_decode_b32": "mixed",
        "smoke": "mixed",
        "prefill_1x8k_p1": "prefill",
        "chunk_2k_on_32k": "prefill",
        "full_2x4k": "prefill",
        "decode_b1_128k": "decode",
        "spec_b64_q16_4k": "decode",
        "decode_b64_prefix16k": "decode",
        "prefill_1x8k_fp8": "fp8",
        "hybrid_qwen7b_p16_fp8q": "fp8",
        "hybrid_qwen7b_p16/rest": "halves",
        "scaling/chunk/decode_b64_8k_chunk256": "scaling",
        "smoke/page/decode_b4_256_p1": "scaling",
    }
    assert {name: where[name] for name in examples} == examples


@pytest.mark.parametrize(("us", "kind"), [(99.0, "faster"), (99.6, ""), (100.4, ""), (101.0, "slower")])
def test_a_ratio_near_one_is_neither(us: float, kind: str) -> None:
    peer = Result("fa3", [100.0])
    result = WorkloadResult(WORKLOADS["prefill_1x8k"], [Result("onewave", [us]), peer])
    assert ratio_cell(result, peer).kind == kind
    assert ratio_cell(WorkloadResult(result.workload, [peer]), peer) == EMPTY


def luminance(color: str) -> float:
    """Relative, of WCAG 2.1."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * channel for weight, channel in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_and_apart() -> None:
    looks = [*LOOKS.values(), *OTHER_LOOKS]
    for scheme in ("light", "dark"):
        paper = getattr(PAPER, scheme)
        for look in looks:
            assert contrast(getattr(look, scheme), paper) >= 3, look
        for ink in (INK, MUTED):
            assert contrast(getattr(ink, scheme), paper) >= 4.5, ink
        assert len({getattr(look, scheme) for look in looks}) == len(looks)
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)


def test_a_palette_has_a_look_for_all() -> None:
    palette = Palette(["fa3", "onewave", "fa3", "theirs", "others"])
    assert list(palette.looks) == ["fa3", "onewave", "theirs", "others"]
    assert palette.looks["theirs"] != palette.looks["others"]
    assert palette.variable("theirs") == "--system-2"
    assert palette.replacements()[LOOKS["onewave"].light] == "var(--system-1)"
