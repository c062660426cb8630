"""use_profiler and trace(): what is recorded on a CPU, where it is kept, and what is refused; and the same on a GPU."""

from typing import Any

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import MIXED, Outputs, make_attention, plan
from onewave import _core
from onewave.plan_format import Plan
from onewave.trace import PHASES, Item, Run, Trace

LENS = [Lens(4000, 1, 3), Lens(300, 200), Lens(500, 1), Lens(0, 2), Lens(40, 0)]
HEADS = Heads(2, 4, 64)
NUM_CTAS = 60
GPU = pytest.param("cuda", marks=pytest.mark.gpu)

# One step of kv heads of an item, as the plan and as the profile have it.
Step = tuple[int, ...]


class Profiled:
    """A batch and an object that runs it."""

    def __init__(self, device: str, lens: list[Lens] | None = None, **limits: Any) -> None:
        self.batch = DenseBatch(lens or LENS, HEADS, torch.bfloat16, 0, device)
        self.paged = self.batch.paged(16, "NHD")
        self.outputs = Outputs(self.batch)
        requests = list(self.batch.requests())
        self.attention = onewave.BatchAttention(
            device=device,
            max_batch_size=len(requests),
            max_total_qo_len=self.batch.total_qo_len,
            max_kv_len=max(group.kv_len for group in requests),
            **({"num_ctas": NUM_CTAS} if device == "cpu" else {}) | limits,
        )

    def plan(self, use_profiler: bool = True, **options: Any) -> None:
        plan(self.attention, self.batch, self.paged, 16, True, use_profiler=use_profiler, **options)

    def run(self, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Copies of the output and the lse."""
        outputs = self.outputs
        outputs.out.fill_(torch.nan)
        outputs.lse.fill_(torch.nan)
        self.attention.run(outputs.q, self.paged.kv_cache, outputs.out, outputs.lse, **options)
        return outputs.out[: outputs.num_rows].clone(), outputs.lse[: outputs.num_rows].clone()

    def planned_steps(self, window: int = 0) -> list[Step]:
        """Of a GPU; a CPU takes all kv heads of an item at once."""
        is_cpu = self.batch.device.type == "cpu"
        found = Plan(self.attention.plan_bytes(window))
        steps = []
        for i, item in enumerate(found.items):
            heads = (
                int(item["kv_head_end"] - item["kv_head_begin"]) if is_cpu else int(item["heads_per_step"])
            )
            for kv_head in range(int(item["kv_head_begin"]), int(item["kv_head_end"]), heads):
                names = (
                    "request",
                    "q_token_begin",
                    "row_begin",
                    "num_rows",
                    "kv_begin",
                    "kv_end",
                    "split_idx",
                )
                is_wide = int(i >= found.header["wide_begin"])
                steps.append((*(int(item[name]) for name in names), kv_head, heads, is_wide))
        return sorted(steps)


def recorded_steps(run: Run) -> list[Step]:
    return sorted(
        (
            *(item.request, item.q_token_begin, item.row_begin, item.num_rows, item.kv_begin, item.kv_end),
            *(item.split_idx, item.kv_head, item.num_heads, int(item.is_wide)),
        )
        for item in run.items
    )


def check_times(run: Run, num_tracks: int) -> None:
    """Items of a CTA one after another and within it, and phases within items."""
    slack_us = 0.01 + 1e-3 * run.us
    for cta in run.ctas:
        ends_us = [cta.begin_us] * num_tracks
        for item in cta.items:
            assert len(item.tracks) == num_tracks
            for i, track in enumerate(item.tracks):
                assert ends_us[i] - slack_us <= track.begin_us <= track.end_us <= cta.end_us + slack_us
                assert sum(track.phases_us.values()) <= track.end_us - track.begin_us + slack_us
                ends_us[i] = track.end_us
    assert 0 < run.us < 60e6


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_run_records_every_item_of_its_plan_once(device: str) -> None:
    profiled = Profiled(device)
    profiled.plan(use_profiler=False)
    expected = profiled.run()
    profiled.plan()
    for out, bits in zip(profiled.run(), expected, strict=True):
        assert torch.equal(out, bits)
    (run,) = profiled.attention.trace().runs
    assert recorded_steps(run) == profiled.planned_steps()
    assert {item.is_wide for item in run.items} == {False, True}
    assert any(item.split_tile >= 0 for item in run.items)
    assert run.num_lost == 0
    check_times(run, 1 if device == "cpu" else 2)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_each_run_since_the_plan_has_a_slot(device: str) -> None:
    profiled = Profiled(device, max_profiled_runs=3)
    profiled.plan()
    assert profiled.attention.trace().runs == []
    for n in range(3):
        profiled.run()
        assert [run.name for run in profiled.attention.trace().runs] == ["run 0", "run 1", "run 2"][: n + 1]
    begins_ns = [run.begin_ns for run in profiled.attention.trace().runs]
    assert begins_ns == sorted(begins_ns) and len(set(begins_ns)) == 3
    out, _ = profiled.run()
    assert not bool(out.isnan().any())
    trace = profiled.attention.trace()
    assert [run.begin_ns for run in trace.runs] == begins_ns and trace.num_unrecorded == 1
    profiled.plan()
    assert profiled.attention.trace().runs == []
    profiled.run()
    trace = profiled.attention.trace()
    assert len(trace.runs) == 1 and trace.runs[0].begin_ns > max(begins_ns) and trace.num_unrecorded == 0


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_run_that_fails_takes_no_slot(device: str) -> None:
    profiled = Profiled(device, max_profiled_runs=1)
    profiled.plan()
    for wrong in ({"window": 1}, {"k_scale": -1.0}, {"q_scale": 1.0}):
        with pytest.raises((ValueError, TypeError)):
            profiled.run(**wrong)
    profiled.run()
    assert len(profiled.attention.trace().runs) == 1


def test_a_slot_is_given_back_where_the_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    profiled = Profiled("cpu", max_profiled_runs=1)
    profiled.plan()
    with monkeypatch.context() as patch:
        patch.setattr("onewave._engine.CpuEngine.run", lambda *_: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            profiled.run()
    profiled.run()
    assert len(profiled.attention.trace().runs) == 1


def test_a_plan_that_fails_keeps_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    profiled = Profiled("cpu")
    profiled.plan(use_profiler=False)
    expected, plan_bytes = profiled.run(), profiled.attention.plan_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("onewave._profiler.torch.zeros", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))
        with pytest.raises(MemoryError):
            profiled.plan(sm_scale=0.5)
    assert profiled.attention.plan_bytes() == plan_bytes
    assert all(map(torch.equal, profiled.run(), expected))


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_items_beyond_the_room_are_counted(device: str) -> None:
    profiled = Profiled(
        device, lens=[Lens(300, 1, 40), Lens(700, 600)], max_profiled_items=1, num_ctas=NUM_CTAS
    )
    profiled.plan()
    profiled.run()
    trace = profiled.attention.trace()
    (run,) = trace.runs
    assert run.num_lost > 0
    assert len(run.items) + run.num_lost == len(profiled.planned_steps())
    assert trace.summary().num_lost == run.num_lost
    assert "more than the buffer has room for" in str(trace.table().caption)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_a_buffer_of_the_caller(device: str) -> None:
    profiled = Profiled(device)
    profiled.plan()
    size = profiled.attention.profiler_buffer_size()
    # FlashInfer's are of uint64.
    buffer = torch.zeros(-(-size // 8), dtype=torch.uint64, device=device)
    assert profiled.attention.trace(buffer).runs == []
    profiled.run(profiler_buffer=buffer)
    assert profiled.attention.trace().runs == []
    (run,) = profiled.attention.trace(buffer).runs
    assert recorded_steps(run) == profiled.planned_steps()


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_windows_are_told_apart(device: str) -> None:
    profiled = Profiled(device, num_windows=2)
    profiled.plan(window_left=(-1, 100))
    profiled.run(window=1)
    profiled.run(window=0)
    windowed, full = profiled.attention.trace().runs
    assert (windowed.window, full.window) == (1, 0)
    assert recorded_steps(windowed) == profiled.planned_steps(1)
    assert recorded_steps(full) == profiled.planned_steps(0)


def test_no_profile_without_the_plans_word() -> None:
    profiled = Profiled("cpu")
    message = r"trace\(\) needs a plan with the profiler; call plan\(use_profiler=True\) first"
    for prepare in (lambda: None, lambda: profiled.plan(use_profiler=False)):
        prepare()
        with pytest.raises(RuntimeError, match=message):
            profiled.attention.trace()
    buffer = torch.zeros(profiled.attention.profiler_buffer_size(), dtype=torch.uint8)
    with pytest.raises(
        ValueError, match=r"profiler_buffer is given; it must be None after a plan\(\) without"
    ):
        profiled.run(profiler_buffer=buffer)


BAD_BUFFERS = {
    "no tensor": ("x", "is a str; it must be a torch.Tensor"),
    "too small": (
        torch.zeros(1000, dtype=torch.uint8),
        "has 1000 bytes; it must have [0-9]+ or more for 60 CTAs",
    ),
    "not aligned": (torch.zeros(200_001, dtype=torch.uint8)[1:], "start at a multiple of 16"),
    "with gaps": (torch.zeros(400_000, dtype=torch.uint8)[::2], "it must be contiguous"),
    "elsewhere": (
        torch.zeros(200_000, dtype=torch.uint8, device="meta"),
        "is on device meta; it must be on cpu",
    ),
}


@pytest.mark.parametrize("mistake", BAD_BUFFERS)
def test_a_buffer_is_refused(mistake: str) -> None:
    buffer, message = BAD_BUFFERS[mistake]
    profiled = Profiled("cpu")
    profiled.plan()
    for use in (lambda: profiled.run(profiler_buffer=buffer), lambda: profiled.attention.trace(buffer)):
        with pytest.raises((TypeError, ValueError), match=f"profiler_buffer .*{message}"):
            use()
    assert bool(profiled.outputs.out.isnan()[: profiled.outputs.num_rows].all()), "something was written"


def test_the_size_of_a_buffer() -> None:
    attention = onewave.BatchAttention(device="cpu", num_ctas=3)
    assert attention.profiler_buffer_size(2) - attention.profiler_buffer_size(1) == 3 * 176
    with pytest.raises(ValueError, match="max_items is 0; it must be from 1 to"):
        attention.profiler_buffer_size(0)


def test_a_profile_of_another_version_is_refused() -> None:
    profiled = Profiled("cpu")
    profiled.plan()
    buffer = torch.zeros(profiled.attention.profiler_buffer_size(), dtype=torch.uint8)
    profiled.run(profiler_buffer=buffer)
    buffer[4] += 1
    with pytest.raises(
        ValueError, match=f"version {_core.PROFILE_VERSION + 1}; it must be {_core.PROFILE_VERSION}"
    ):
        profiled.attention.trace(buffer)


@pytest.mark.gpu
def test_phases_of_a_gpu() -> None:
    """Where a batch has them: splits merge, all items wait for what is loaded, and multiply."""
    profiled = Profiled("cuda", lens=MIXED)
    profiled.plan()
    profiled.run()
    (run,) = profiled.attention.trace().runs

    def total_us(phase: str, items: list[Item]) -> float:
        return sum(track.phases_us[phase] for item in items for track in item.tracks)

    with_keys = [item for item in run.items if item.kv_end > item.kv_begin]
    for is_wide in (False, True):
        items = [item for item in with_keys if item.is_wide == is_wide]
        for phase in ("wait for keys", "wait for values", "softmax", "products", "store"):
            assert total_us(phase, items) > 0, (phase, is_wide)
    splits = [item for item in run.items if item.split_tile >= 0]
    assert total_us("merge", splits) > 0
    assert total_us("merge", [item for item in run.items if item.split_tile < 0]) == 0
    assert 500 < run.clock_mhz < 2500
    num_sms = torch.cuda.get_device_properties(0).multi_processor_count
    assert {cta.sm for cta in run.ctas} <= set(range(num_sms))


@pytest.mark.gpu
def test_a_prediction_of_the_plan_is_beside_a_run() -> None:
    profiled = Profiled("cuda", lens=[Lens(8192, 1, 64), Lens(4096, 4096)])
    profiled.plan()
    profiled.run()
    profiled.run()
    trace = profiled.attention.trace()
    (_, run) = trace.runs
    assert run.prediction is not None
    summary = trace.summary(1)
    assert summary.predicted_us is not None and 0.5 < summary.predicted_us / summary.us < 2
    predicted = sum(bar.us for bar in run.prediction)
    measured = sum(item.us for item in run.items)
    assert 0.5 < predicted / measured < 2


@pytest.mark.gpu
def test_layers_of_a_graph_keep_their_slots() -> None:
    profiled = Profiled("cuda")
    profiled.plan()
    profiled.run()  # outside: slot 0
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(3):
            outputs = profiled.outputs
            profiled.attention.run(outputs.q, profiled.paged.kv_cache, outputs.out, outputs.lse)
    for n in range(2):
        profiled.plan()
        assert profiled.attention.trace().runs == []
        graph.replay()
        runs = profiled.attention.trace().runs
        assert [run.name for run in runs] == [f"run {i}, replayed" for i in (1, 2, 3)]
        assert all(recorded_steps(run) == profiled.planned_steps() for run in runs)
        assert runs[0].begin_ns < runs[1].begin_ns < runs[2].begin_ns
        profiled.run()  # the slot that no graph has
        assert profiled.attention.trace().runs[0].name == "run 0"
    with pytest.raises(
        RuntimeError, match="use_profiler is False; it must stay True, because run.. was captured"
    ):
        profiled.plan(use_profiler=False)


@pytest.mark.gpu
def test_there_is_no_profiler_for_fp16() -> None:
    batch = DenseBatch(LENS, HEADS, torch.float16, 0, "cuda")
    paged = batch.paged(16, "NHD")
    attention = make_attention(batch)
    with pytest.raises(
        ValueError, match="float16 head_dim 64 tma with the profiler; the nearest is bfloat16"
    ):
        plan(attention, batch, paged, 16, True, use_profiler=True)
    plan(attention, batch, paged, 16, True)


def test_a_trace_of_no_run_says_so() -> None:
    for ask in (Trace([]).summary, Trace([]).table):
        with pytest.raises(ValueError, match="the trace has no run"):
            ask()


def test_phases_of_a_cpu() -> None:
    """By name: where a batch has none of one, it takes no time."""
    profiled = Profiled("cpu", lens=[Lens(3000, 1, 2)], num_ctas=16)
    profiled.plan()
    profiled.run()
    (run,) = profiled.attention.trace().runs
    taken = {phase for phase in PHASES if any(item.tracks[0].phases_us[phase] > 0 for item in run.items)}
    assert (
        {"wait for keys", "products"}
        <= taken
        <= {"wait for queries", "wait for keys", "products", "store", "merge"}
    )


@pytest.mark.gpu
def test_runs_that_overlap_are_recorded_apart() -> None:
    """Of programmatic dependent launch: each waits for the one before, and for what plan() has cleared."""
    profiled = Profiled("cuda", max_profiled_runs=8)
    outputs = profiled.outputs
    for _ in range(3):
        profiled.plan()
        for _ in range(8):
            profiled.attention.run(
                outputs.q, profiled.paged.kv_cache, outputs.out, outputs.lse, enable_pdl=True
            )
        runs = profiled.attention.trace().runs
        assert len(runs) == 8
        for run in runs:
            assert recorded_steps(run) == profiled.planned_steps()
            check_times(run, 2)
        begins_ns = [run.begin_ns for run in runs]
        assert begins_ns == sorted(begins_ns)


@pytest.mark.gpu
def test_a_buffer_of_the_caller_in_a_graph() -> None:
    profiled = Profiled("cuda", max_profiled_runs=1)
    profiled.plan()
    buffer = torch.zeros(profiled.attention.profiler_buffer_size(), dtype=torch.uint8, device="cuda")
    outputs = profiled.outputs
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        profiled.attention.run(
            outputs.q, profiled.paged.kv_cache, outputs.out, outputs.lse, profiler_buffer=buffer
        )
    graph.replay()
    (run,) = profiled.attention.trace(buffer).runs
    assert recorded_steps(run) == profiled.planned_steps()
