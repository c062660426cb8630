"""What an inference engine does with one object for months: no allocation, its own scales, streams, devices and page
tables, lengths that it does not know yet, caches of any size."""

import gc
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import onewave
import pytest
import torch
from dense_batch import DenseBatch, Heads, Lens
from gpu_checks import MIXED, WILD_PAGE, Outputs, as_block_table, make_attention, plan, run_twice

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("float32_means_float32")]

HEADS = Heads(2, 4, 128)


def test_steps_allocate_nothing_on_either_side(seed: int) -> None:
    """After the first of a shape, by torch's counters of device and of pinned host memory, and by the driver's."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    outputs = Outputs(batch)

    def step() -> None:
        plan(attention, batch, paged, 16, True)
        attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)

    def counters() -> tuple[int, dict[str, int], int]:
        torch.cuda.synchronize()
        on_device = torch.cuda.memory_stats()["allocation.all.allocated"]
        pinned = torch.cuda.host_memory_stats()
        counts = {name: count for name, count in pinned.items() if "time" not in name}
        return on_device, counts, torch.cuda.mem_get_info()[0]

    before_pinned = counters()
    torch.empty(1 << 20, pin_memory=True)
    assert counters()[1] != before_pinned[1], "the counter of pinned memory counts nothing"

    for _ in range(3):
        step()
    gc.collect()
    before = counters()
    for _ in range(50):
        step()
    assert counters() == before


def test_all_memory_is_the_callers_or_the_workspace(seed: int) -> None:
    """What an object takes of the device beside the workspace that it was given: the module of its kernel."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(16)
    outputs = Outputs(batch)
    workspace = torch.empty(
        onewave.workspace_size(
            num_qo_heads=HEADS.num_qo_heads,
            num_kv_heads=HEADS.num_kv_heads,
            head_dim=HEADS.head_dim,
            page_size=16,
        ),
        dtype=torch.uint8,
        device="cuda",
    )
    assert workspace.numel() < 64 << 20
    attention = onewave.BatchAttention(workspace=workspace)
    before = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    plan(attention, batch, paged, 16, True)
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    assert torch.cuda.memory_stats()["allocated_bytes.all.current"] == before
    outputs.check(batch.expected(True))


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_block_table_in_place(page_size: int, seed: int) -> None:
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(page_size)
    on_device = as_block_table(paged)
    on_host = on_device.cpu()
    on_host[on_host == WILD_PAGE] = -1
    for block_table in (on_device, on_host):
        attention = make_attention(batch)
        attention.plan(
            paged.qo_indptr,
            None,
            None,
            paged.kv_len_arr,
            *(HEADS.num_qo_heads, HEADS.num_kv_heads, HEADS.head_dim, HEADS.head_dim),
            page_size,
            causal=True,
            block_table=block_table,
        )
        outputs = Outputs(batch)
        run_twice(attention, outputs, paged)
        outputs.check(batch.expected(True))


# Lengths, and what they are planned as: splits that no key is left for, narrow and wide, whole requests without keys.
BOUNDED = {
    "mixed": (MIXED, [9000, 3000, 5000, 33, 700, 50, 4000]),
    "few keys of many": (
        [Lens(300, 1, 2), Lens(90, 70), Lens(0, 3), Lens(0, 60)],
        [60000, 40000, 30000, 20000],
    ),
    "as planned": (MIXED, [group.kv_len for group in MIXED]),
    "nothing": ([Lens(0, 1, 5), Lens(0, 200)], [4000, 9000]),
}


@pytest.mark.parametrize("split_policy", ["balanced", "fixed"])
@pytest.mark.parametrize("page_size", [1, 3, 8, 16])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("name", BOUNDED)
def test_lengths_that_are_known_when_it_runs(
    name: str, head_dim: int, page_size: int, split_policy: str, seed: int
) -> None:
    """Planned from bounds; the page table holds no pages for what is above the lengths. Then the same plan runs, in a
    graph, with other lengths in the same tensor."""
    lens, bounds = BOUNDED[name]
    heads = Heads(4, 4, head_dim)
    batch = DenseBatch(lens, heads, torch.bfloat16, seed)
    paged = batch.paged(page_size)
    bound_of_request = [bound for group, bound in zip(lens, bounds, strict=True) for _ in range(group.count)]
    table = as_block_table(paged, -(-max(bounds) // page_size))
    actual = paged.kv_len_arr.cuda()
    attention = onewave.BatchAttention(
        max_batch_size=64, max_total_qo_len=1024, max_kv_len=60000, split_policy=split_policy
    )
    arguments = (heads.num_qo_heads, heads.num_kv_heads, heads.head_dim, heads.head_dim, page_size)
    for causal in (True, False):
        attention.plan(
            paged.qo_indptr,
            None,
            None,
            torch.tensor(bound_of_request, dtype=torch.int32),
            *arguments,
            causal=causal,
            block_table=table,
            actual_kv_len_arr=actual,
        )
        outputs = Outputs(batch)
        run_twice(attention, outputs, paged)
        outputs.check(batch.expected(causal))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            attention.update_kv_lens()
            attention.run(outputs.q, paged.kv_cache, outputs.out, outputs.lse, enable_pdl=True)
        shorter = [replace_keys(batch, kept) for kept in (0.5, 0.0)]
        for other in shorter:
            actual.copy_(other.paged(page_size).kv_len_arr)
            outputs.poison()
            graph.replay()
            outputs.check(other.expected(causal))
        actual.copy_(paged.kv_len_arr)


def test_a_request_that_lost_its_keys_leaves_the_partials_before_it_alone(seed: int) -> None:
    """With fixed splits the tiles of a CTA share their partial rows: the next tile's, of other rows and without keys,
    are stored while some warps may still merge."""
    lens = [group for _ in range(128) for group in (Lens(3000, 3), Lens(0, 8))]
    batch = DenseBatch(lens, Heads(1, 1, 128), torch.bfloat16, seed)
    paged = batch.paged(16)
    bound = 16384
    attention = onewave.BatchAttention(
        max_batch_size=256, max_total_qo_len=2048, max_kv_len=bound, split_policy="fixed"
    )
    attention.plan(
        *(paged.qo_indptr, None, None, torch.full((256,), bound, dtype=torch.int32), 1, 1, 128, 128, 16),
        causal=True,
        block_table=as_block_table(paged, bound // 16),
        actual_kv_len_arr=paged.kv_len_arr.cuda(),
    )
    outputs = Outputs(batch)
    expected = batch.expected(True)
    for _ in range(20):
        run_twice(attention, outputs, paged)
        outputs.check(expected)


def replace_keys(batch: DenseBatch, kept: float) -> DenseBatch:
    """The same queries, and the first part of the keys."""
    lens = [group._replace(kv_len=int(group.kv_len * kept)) for group in batch.lens]
    other = DenseBatch(lens, batch.heads, batch.dtype, 0)
    other.q = batch.q
    other.k = [k[:, : group.kv_len] for k, group in zip(batch.k, lens, strict=True)]
    other.v = [v[:, : group.kv_len] for v, group in zip(batch.v, lens, strict=True)]
    return other


@pytest.mark.parametrize("on_device", [False, True])
def test_a_scale_of_one_run(on_device: bool, seed: int) -> None:
    """In place of the plan's; the reference has it as k_scale."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    scale = 0.37 / math.sqrt(HEADS.head_dim)
    argument = torch.tensor(scale, device="cuda") if on_device else scale
    expected = batch.expected(True, k_scale=0.37)
    for page_size in (1, 16):
        paged = batch.paged(page_size)
        attention = make_attention(batch)
        outputs = Outputs(batch)
        plan(attention, batch, paged, page_size, True)
        run_twice(attention, outputs, paged, sm_scale=argument)
        outputs.check(expected)


def test_lse_may_be_left_out(seed: int) -> None:
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(16)
    attention = make_attention(batch)
    outputs = Outputs(batch)
    plan(attention, batch, paged, 16, True)
    attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    alone, nothing = attention.run(outputs.q, paged.kv_cache, return_lse=False)
    assert nothing is None
    assert torch.equal(alone[: batch.total_qo_len], outputs.out[: batch.total_qo_len])


@pytest.mark.parametrize("page_size", [1, 16])
def test_a_cache_of_more_than_2_to_the_32_elements(page_size: int, seed: int) -> None:
    """Pages of the batch all over a cache of 9 GB."""
    batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed)
    paged = batch.paged(page_size)
    small = paged.kv_cache
    assert isinstance(small, torch.Tensor)
    num_pages = ((1 << 32) + (1 << 25)) // small[0].numel()
    cache = torch.empty((num_pages, *small.shape[1:]), dtype=small.dtype, device="cuda")
    places = torch.linspace(0, num_pages - 1, small.shape[0], dtype=torch.float64).long().cuda()
    cache[places] = small
    moved = replace(paged, kv_indices=places[paged.kv_indices.long()].to(torch.int32), kv_cache=cache)
    assert int(moved.kv_indices.max()) * small[0].numel() > 1 << 32
    attention = make_attention(batch)
    outputs = Outputs(batch)
    plan(attention, batch, moved, page_size, True)
    run_twice(attention, outputs, moved)
    outputs.check(batch.expected(True))


def test_several_threads_with_an_object_and_a_stream_each(seed: int) -> None:
    batches = [DenseBatch([Lens(500 + 300 * i, 1 + i, 5)], HEADS, torch.bfloat16, seed + i) for i in range(6)]
    expected = [batch.expected(True) for batch in batches]
    torch.cuda.synchronize()

    def serve(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            paged, outputs = batches[i].paged(16), Outputs(batches[i])
            attention = make_attention(batches[i])
            for _ in range(50):
                plan(attention, batches[i], paged, 16, True)
                outputs.poison()
                attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
            outputs.check(expected[i])

    with ThreadPoolExecutor(len(batches)) as pool:
        for served in [pool.submit(serve, i) for i in range(len(batches))]:
            served.result()


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_several_devices_in_one_process(seed: int) -> None:
    """Each on the current stream of its device, whatever the current device is."""
    steps = []
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        batch = DenseBatch(MIXED, HEADS, torch.bfloat16, seed + index, device)
        steps.append(
            (batch, batch.paged(16), make_attention(batch), Outputs(batch), torch.cuda.Stream(device))
        )
    torch.cuda.synchronize()
    for _ in range(3):
        for batch, paged, attention, outputs, stream in steps:
            with torch.cuda.stream(stream), torch.cuda.device(0):
                plan(attention, batch, paged, 16, True)
                outputs.poison()
                attention.run(outputs.q, paged.kv_cache, out=outputs.out, lse=outputs.lse)
    for batch, _, _, outputs, stream in steps:
        stream.synchronize()
        outputs.check(batch.expected(True))
