"""What must hold for every plan, checked by brute force from the batch alone: no code of the planner's is used."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from onewave import _core
from onewave._calibration import read_calibration
from onewave.plan_format import Plan

CALIBRATION_FILE = Path(__file__).parent / "calibration.json"
CALIBRATION = read_calibration(CALIBRATION_FILE)

TILE_KV = 128
WIDE_TILE_Q = 128
NARROW_TILE_Q = 32
NARROW_STEP_ROWS = 64
NO_WINDOW = -(1 << 30)
MOST_MEMBER_ROWS = 64  # of a request that shares prefixes


@dataclass(frozen=True)
class Batch:
    """One step and the limits it is planned under; `requests` are (kv_len, qo_len)."""

    requests: list[tuple[int, int]]
    num_qo_heads: int = 32
    num_kv_heads: int = 8
    head_dim: int = 128
    page_size: int = 16
    causal: bool = True
    num_ctas: int = 132
    split_policy: _core.SplitPolicy = _core.SplitPolicy.BALANCED
    max_batch_size: int | None = None  # None: just its requests
    actual_kv_lens: np.ndarray | None = None  # int32; lengths are upper bounds then
    window_left: int = -1
    custom_masks: list[np.ndarray | None] | None = None  # bool [qo_len, kv_len] of each request
    prefix_groups: tuple[tuple[int, int, int], ...] = ()  # (request_begin, request_end, num_tokens)

    @property
    def group_size(self) -> int:
        return self.num_qo_heads // self.num_kv_heads

    @property
    def qo_indptr(self) -> np.ndarray:
        return np.cumsum([0] + [qo_len for _, qo_len in self.requests], dtype=np.int32)

    @property
    def kv_indptr(self) -> np.ndarray:
        num_pages = [-(-kv_len // self.page_size) for kv_len, _ in self.requests]
        return np.cumsum([0, *num_pages], dtype=np.int32)

    @property
    def kv_len_arr(self) -> np.ndarray:
        return np.array([kv_len for kv_len, _ in self.requests], dtype=np.int32)

    def limits(self) -> _core.PlanLimits:
        """As tight as the batch allows, so that a bound of the planner's that is too small shows."""
        return _core.PlanLimits(
            self.max_batch_size or max(1, len(self.requests)),
            max(1, int(self.qo_indptr[-1])),
            max(1, *(kv_len for kv_len, _ in self.requests), 1),
            self.num_ctas,
            self.split_policy,
            1,
            0 if self.custom_masks is None else 1 << 22,
            self.shared_qo_len(),
        )

    def packed_masks(self) -> tuple[np.ndarray, np.ndarray]:
        """The bits of all requests, and where each one's begin."""
        masks = self.custom_masks or [None] * len(self.requests)
        packed = [
            np.packbits(np.zeros(0, bool) if mask is None else mask.ravel(), bitorder="little")
            for mask in masks
        ]
        indptr = np.cumsum([0] + [len(part) for part in packed], dtype=np.int64)
        return np.concatenate([*packed, np.zeros(1, np.uint8)]), indptr

    def allowed(self, request: int) -> np.ndarray:
        """[packed row, key] that the masks allow."""
        kv_len, qo_len = self.requests[request]
        position = kv_len - qo_len + np.arange(qo_len)[:, None]
        keys = np.arange(kv_len)
        custom = None if self.custom_masks is None else self.custom_masks[request]
        seen = np.ones((qo_len, kv_len), dtype=bool) if not self.causal else keys <= position
        seen = seen if custom is None or custom.size == 0 else custom
        if self.window_left >= 0:
            seen = seen & (keys >= position - self.window_left)
        return np.repeat(seen, self.group_size, axis=0)

    def prefixes_of(self, request: int) -> list[tuple[int, int]]:
        """The ranges of keys that a request shares, from the first key on without a gap."""
        if self.window_left >= 0 or not self.may_share(self.requests[request]):
            return []
        ranges: list[tuple[int, int]] = []
        kv_begin = 0
        for begin, end, num_tokens in sorted(
            self.prefix_groups, key=lambda group: (group[0] - group[1], group[2])
        ):
            kv_end = num_tokens // TILE_KV * TILE_KV
            num_members = sum(map(self.may_share, self.requests[begin:end]))
            if begin <= request < end and num_members >= 2 and kv_end > kv_begin:
                ranges.append((kv_begin, kv_end))
                kv_begin = kv_end
        return ranges

    def may_share(self, request: tuple[int, int]) -> bool:
        num_rows = request[1] * self.group_size
        return 0 < num_rows <= MOST_MEMBER_ROWS

    def num_shared_keys(self, request: int) -> int:
        return max((end for _, end in self.prefixes_of(request)), default=0)

    def shared_qo_len(self) -> int:
        """Query tokens of all that share, counted for each prefix."""
        return sum(qo_len * len(self.prefixes_of(i)) for i, (_, qo_len) in enumerate(self.requests))

    @cached_property
    def prefix_array(self) -> np.ndarray:
        return np.array(self.prefix_groups, dtype=np.int32).reshape(-1, 3)

    def prefix_arguments(self) -> dict[str, int]:
        """As the planner takes them."""
        if not self.prefix_groups:
            return {}
        return {
            "prefix_groups": self.prefix_array.ctypes.data,
            "num_prefix_groups": len(self.prefix_array),
        }

    def shape(self) -> _core.AttentionShape:
        return _core.AttentionShape(
            self.num_qo_heads,
            self.num_kv_heads,
            self.head_dim,
            self.head_dim,
            self.page_size,
            _core.DType.BFLOAT16,
        )

    def plan_bytes(self) -> bytes:
        qo_indptr, kv_indptr, kv_len_arr = self.qo_indptr, self.kv_indptr, self.kv_len_arr
        custom_mask, mask_indptr = self.packed_masks()
        has_masks = self.custom_masks is not None
        return _core.plan_batch(
            self.limits(),
            self.shape(),
            self.causal,
            0.125,
            len(self.requests),
            qo_indptr.ctypes.data,
            kv_indptr.ctypes.data,
            kv_len_arr.ctypes.data,
            0,
            self.costs(),
            actual_kv_len_arr=0 if self.actual_kv_lens is None else self.actual_kv_lens.ctypes.data,
            window_left=self.window_left,
            custom_mask=custom_mask.ctypes.data if has_masks else 0,
            mask_indptr=mask_indptr.ctypes.data if has_masks else 0,
            **self.prefix_arguments(),
        )

    def costs(self) -> _core.CostModel:
        return _core.CostModel(self.shape(), CALIBRATION)

    def plan(self) -> Plan:
        return Plan(self.plan_bytes())


def check_plan(batch: Batch, plan: Plan) -> None:
    check_records(batch, plan)
    check_prediction(batch, plan)
    for request in range(len(batch.requests)):
        check_request(batch, plan, request)


def check_records(batch: Batch, plan: Plan) -> None:
    check_sizes(batch, plan)
    check_lists(plan)
    check_items(batch, plan)
    check_splits(plan, batch.split_policy)
    check_members(batch, plan)


def check_sizes(batch: Batch, plan: Plan) -> None:
    layout = _core.workspace_layout(batch.limits(), batch.shape())
    assert len(plan.to_bytes()) == plan.header["num_bytes"] <= layout.plan_bytes
    assert plan.header["num_partial_rows"] <= layout.max_partial_rows
    assert plan.header["num_ctas"] == batch.num_ctas
    assert layout.plan_bytes <= layout.partial_lse_offset
    assert layout.partial_lse_offset + 4 * layout.max_partial_rows <= layout.partial_out_offset
    partial_out_bytes = 4 * layout.max_partial_rows * batch.head_dim
    assert layout.partial_out_offset + partial_out_bytes == layout.total_bytes
    assert layout.partial_lse_offset % 256 == layout.partial_out_offset % 256 == 0


def check_lists(plan: Plan) -> None:
    """The CTAs' lists partition the narrow items; idle CTAs begin with the first wide ones, the queue has the rest."""
    ctas, wide_begin = plan.ctas, int(plan.header["wide_begin"])
    assert 0 <= wide_begin <= len(plan.items)
    assert ctas["narrow_begin"][0] == 0
    assert ctas["narrow_end"][-1] == wide_begin
    assert (ctas["narrow_begin"][1:] == ctas["narrow_end"][:-1]).all()
    assert (ctas["narrow_begin"] <= ctas["narrow_end"]).all()
    is_idle = ctas["narrow_begin"] == ctas["narrow_end"]
    first_items = ctas["first_item"][ctas["first_item"] >= 0]
    assert (ctas["first_item"][~is_idle] == -1).all()
    assert len(first_items) == min(is_idle.sum(), len(plan.wide_items)) == plan.header["num_first_items"]
    assert (first_items == wide_begin + np.arange(len(first_items))).all()
    num_working = len(first_items) + (~is_idle).sum()
    num_draws = len(plan.wide_items) - len(first_items) + num_working if len(plan.wide_items) else 0
    assert plan.header["num_draws"] == num_draws
    # Idle CTAs are alike: which of them the planner took to take an item is not which begins with it.
    assert (ctas["predicted_us"] >= 0).all() and (ctas["predicted_us"][~is_idle] > 0).all()


def check_items(batch: Batch, plan: Plan) -> None:
    of_prefix = prefix_items(plan)
    check_prefix_items(batch, plan, plan.items[of_prefix])
    items = plan.items[~of_prefix]
    qo_lens = np.diff(batch.qo_indptr)[items["request"]]
    kv_lens = batch.kv_len_arr[items["request"]]
    num_rows = qo_lens * batch.group_size
    row_end = items["row_begin"] + items["num_rows"]
    assert (items["num_rows"] > 0).all()
    assert (items["row_begin"] >= 0).all() and (row_end <= num_rows).all()
    assert (items["q_token_begin"] == batch.qo_indptr[items["request"]]).all()
    assert (items["page_begin"] == batch.kv_indptr[items["request"]]).all()
    assert (items["kv_head_begin"] >= 0).all() and (items["kv_head_end"] <= batch.num_kv_heads).all()
    assert (items["kv_head_begin"] < items["kv_head_end"]).all()
    heads = items["heads_per_step"]
    assert np.isin(heads, (1, 2, 4, 8)).all()
    assert ((items["kv_head_end"] - items["kv_head_begin"]) % heads == 0).all()
    assert (items["kv_head_begin"] % heads == 0).all()
    assert (items["kv_begin"] % (TILE_KV // heads) == 0).all()

    is_narrow = np.flatnonzero(~of_prefix) < plan.header["wide_begin"]
    last_token = (row_end - 1) // batch.group_size
    visible = kv_lens - qo_lens + last_token + 1 if batch.causal else kv_lens
    tile_end = np.clip(visible, 0, kv_lens)
    tile_begin = np.zeros_like(tile_end)
    if batch.window_left >= 0:
        spare = TILE_KV if batch.actual_kv_lens is not None else 0
        first = kv_lens - qo_lens + items["row_begin"] // batch.group_size - batch.window_left - spare
        tile_begin = np.clip(first, 0, tile_end) // TILE_KV * TILE_KV
    has_custom = items["mask_begin"] >= 0
    for i, item in enumerate(items):
        tile_begin[i] = max(tile_begin[i], batch.num_shared_keys(int(item["request"])))
        tile_end[i] = max(tile_end[i], tile_begin[i])
    for i in np.flatnonzero(has_custom):  # keys by tiles that somebody sees
        tile_end[i] = custom_keys(batch, items[i])
        tile_begin[i] = 0
    of_narrow_request = num_rows <= NARROW_TILE_Q
    assert (is_narrow == (of_narrow_request | (tile_end == tile_begin))).all()
    assert (items["num_rows"] <= np.where(of_narrow_request, NARROW_TILE_Q, WIDE_TILE_Q)).all()
    assert (items["kv_end"] <= tile_end).all(), "keys that no row of the tile sees"
    assert (items["kv_begin"] >= tile_begin).all(), "keys before the window"
    is_split = items["split_tile"] >= 0
    assert (items["kv_begin"] == tile_begin)[~is_split | (items["split_idx"] == 0)].all()
    inner_end = is_split & (items["kv_end"] < tile_end)
    assert (items["kv_end"][inner_end] % (TILE_KV // heads[inner_end]) == 0).all()
    assert (heads[~is_narrow | (tile_end == tile_begin)] == 1).all()
    padded_rows = np.select([items["num_rows"] <= 8, items["num_rows"] <= 16], [8, 16], 32)
    assert (heads * padded_rows)[heads > 1].max(initial=0) <= NARROW_STEP_ROWS


def check_splits(plan: Plan, split_policy: _core.SplitPolicy) -> None:
    """Every partial row is written by one item and read by one merge; a merge has all its pieces, in key order. With
    fixed splits a CTA writes its own rows anew for each tile that it has all pieces of, one such tile after another."""
    slot_writers = np.zeros(plan.header["num_partial_rows"], dtype=int)
    slot_cta = np.full(plan.header["num_partial_rows"], -1)  # of rows that are written anew
    cta_of_item = np.repeat(np.arange(len(plan.ctas)), plan.ctas["narrow_end"] - plan.ctas["narrow_begin"])
    assert len(plan.counters) == len(plan.split_tiles) + 1 and (plan.counters == 0).all()
    # Those of an item: for each of its kv heads one, or one for all of them.
    num_tiles = (plan.items["kv_head_end"] - plan.items["kv_head_begin"]) // plan.items["heads_per_step"]
    for index, tile in enumerate(plan.split_tiles):
        is_merged = tile["num_members"] > 0 or tile["num_prefixes"] > 0
        assert tile["num_splits"] >= (1 if is_merged else 2)
        first = plan.items["split_tile"]
        places = np.flatnonzero((first >= 0) & (first <= index) & (index < first + num_tiles))
        pieces = plan.items[places]
        num_heads = tile["kv_head_end"] - tile["kv_head_begin"]
        assert (pieces["heads_per_step"] == num_heads).all()
        for field in ("q_token_begin", "row_begin", "num_rows"):
            assert (pieces[field] == tile[field]).all()
        assert (
            pieces["kv_head_begin"] + (index - pieces["split_tile"]) * num_heads == tile["kv_head_begin"]
        ).all()
        assert is_merged or (pieces["kv_head_end"] == tile["kv_head_end"]).all()
        pieces = pieces[np.argsort(pieces["split_idx"])]
        assert pieces["split_idx"].tolist() == list(range(tile["num_splits"]))
        assert (pieces["kv_begin"] < pieces["kv_end"]).all() or tile["num_prefixes"] > 0
        assert (pieces["kv_begin"][1:] == pieces["kv_end"][:-1]).all()
        is_of_one_cta = split_policy is _core.SplitPolicy.FIXED and len(set(cta_of_item[places])) == 1
        assert bool(tile["is_of_one_cta"]) == is_of_one_cta
        if is_of_one_cta:
            rows = slice(
                tile["partial_row_begin"], tile["partial_row_begin"] + tile["num_splits"] * tile["num_rows"]
            )
            assert (np.diff(places) == 1).all()
            assert np.isin(slot_cta[rows], (-1, cta_of_item[places[0]])).all()
            slot_cta[rows] = cta_of_item[places[0]]
            continue
        for kv_head in range(tile["kv_head_begin"], tile["kv_head_end"]):
            for split in range(tile["num_splits"]):
                slot = split * (tile["kv_head_end"] - tile["kv_head_begin"]) + kv_head - tile["kv_head_begin"]
                begin = tile["partial_row_begin"] + slot * tile["num_rows"]
                slot_writers[begin : begin + tile["num_rows"]] += 1
    if split_policy is _core.SplitPolicy.BALANCED:
        assert (slot_writers == 1).all()
    assert (slot_writers <= 1).all() and not slot_writers[slot_cta >= 0].any()


def prefix_items(plan: Plan) -> np.ndarray:
    """Which items are of shared prefixes."""
    if len(plan.split_tiles) == 0:
        return np.zeros(len(plan.items), dtype=bool)
    return (plan.items["split_tile"] >= 0) & (plan.split_tiles["num_members"][plan.items["split_tile"]] > 0)


def check_prefix_items(batch: Batch, plan: Plan, items: np.ndarray) -> None:
    """Their rows are those of requests that share their keys; all rows see all keys."""
    for item in items:
        first_row = item["q_token_begin"] * batch.group_size + item["row_begin"]
        of_rows = requests_of_rows(batch, first_row, item["num_rows"])
        for request in np.unique(of_rows):
            inside = [
                end
                for begin, end in batch.prefixes_of(int(request))
                if begin <= item["kv_begin"] and item["kv_end"] <= end
            ]
            assert len(inside) == 1 and item["causal_shift"] == inside[0]
        assert item["q_token_begin"] == batch.qo_indptr[of_rows[0]] and item["row_begin"] == 0
        # The keys are those of the group's first request that shares them.
        begin, end = max(
            (
                (begin, end)
                for begin, end, num_tokens in batch.prefix_groups
                if begin <= of_rows[0] < end and num_tokens // TILE_KV * TILE_KV == item["causal_shift"]
            ),
            key=lambda group: group[1] - group[0],
        )
        first = next(i for i in range(begin, end) if batch.may_share(batch.requests[i]))
        assert item["request"] == first and item["page_begin"] == batch.kv_indptr[first]
        assert item["num_rows"] <= WIDE_TILE_Q and item["heads_per_step"] == 1
        assert item["mask_begin"] < 0 and item["window_shift"] == NO_WINDOW


def requests_of_rows(batch: Batch, first_row: int, num_rows: int) -> np.ndarray:
    """The request of each of some packed rows, counted over all of q."""
    tokens = (first_row + np.arange(num_rows)) // batch.group_size
    return np.searchsorted(batch.qo_indptr, tokens, side="right") - 1


def check_members(batch: Batch, plan: Plan) -> None:
    """A tile that shares prefixes has one link to each, with its rows among that one's, and the prefix counts it."""
    tiles = plan.split_tiles

    def first_row(tile: np.void) -> int:
        return int(tile["q_token_begin"]) * batch.group_size + int(tile["row_begin"])

    counted = np.zeros(len(tiles), dtype=int)
    for prefix in tiles[tiles["num_members"] > 0]:
        members = prefix["first_member"] + np.arange(prefix["num_members"]) * batch.num_kv_heads
        counted[members] += 1
        assert (tiles["kv_head_begin"][members] == prefix["kv_head_begin"]).all()
        rows = np.concatenate([first_row(tiles[m]) + np.arange(tiles["num_rows"][m]) for m in members])
        assert (rows == first_row(prefix) + np.arange(prefix["num_rows"])).all()
        numbers = plan.row_members[prefix["list_begin"] : prefix["list_begin"] + prefix["num_rows"]]
        assert (numbers == np.repeat(np.arange(prefix["num_members"]), tiles["num_rows"][members])).all()
    assert (counted == tiles["num_prefixes"]).all()
    for index, member in enumerate(tiles):
        if member["num_prefixes"] == 0:
            continue
        request = int(requests_of_rows(batch, first_row(member), 1)[0])
        assert member["num_prefixes"] == len(batch.prefixes_of(request))
        sources = [
            (prefix["partial_row_begin"] + first_row(member) - first_row(prefix), prefix)
            for prefix in tiles[tiles["num_members"] > 0]
            if index in prefix["first_member"] + np.arange(prefix["num_members"]) * batch.num_kv_heads
        ]
        sources.append((member["partial_row_begin"], member))
        listed = plan.partial_rows[member["list_begin"] : member["list_begin"] + len(sources)]
        assert [tuple(rows) for rows in listed] == [
            (first, tile["num_rows"], tile["num_splits"], 0) for first, tile in sources
        ]


def check_splits_both_kinds(plan: Plan) -> None:
    """For a test that is to run merges of narrow and of wide items."""
    is_split = plan.items["split_tile"] >= 0
    assert is_split[: plan.header["wide_begin"]].any() and is_split[plan.header["wide_begin"] :].any()


def check_prediction(batch: Batch, plan: Plan) -> None:
    """A CTA's narrow items, and the wide ones that it takes if the predictions hold, add up to its prediction."""
    qo_indptr, costs = batch.qo_indptr, batch.costs()
    us = np.array(
        _core.predict_items(
            plan.to_bytes(),
            batch.shape(),
            len(batch.requests),
            qo_indptr.ctypes.data,
            costs,
            **batch.prefix_arguments(),
        )
    )
    assert (us > 0).all() and len(us) == len(plan.items)
    loads = [
        (costs.launch_us + us[cta["narrow_begin"] : cta["narrow_end"]].sum(), index)
        for index, cta in enumerate(plan.ctas)
    ]
    heapq.heapify(loads)
    for item_us in us[plan.header["wide_begin"] :]:  # whoever is done first takes the next
        heapq.heapreplace(loads, (loads[0][0] + item_us, loads[0][1]))
    # Sorted: which of two CTAs that are done within a nanosecond is first does not matter.
    assert np.allclose(
        np.sort([load for load, _ in loads]), np.sort(plan.ctas["predicted_us"]), rtol=1e-3, atol=0.01
    )


def check_area(batch: Batch, plan: Plan, request: int) -> None:
    """Of a request too large for check_request: as many (kv head, row, key) as its tiles have, with those that the mask
    hides in them."""
    kv_len, qo_len = batch.requests[request]
    items = plan.items[plan.items["request"] == request]
    tile_area = items["num_rows"].astype(np.int64) * (items["kv_end"] - items["kv_begin"])
    num_heads = items["kv_head_end"] - items["kv_head_begin"]
    # In Python's integers from here: all heads of all tiles may be more than 64 bits hold.
    area = sum(int(heads) * int(tile_area[num_heads == heads].sum()) for heads in np.unique(num_heads))
    num_rows = qo_len * batch.group_size
    tile_q = NARROW_TILE_Q if num_rows <= NARROW_TILE_Q else WIDE_TILE_Q
    row_begin = np.arange(0, num_rows, tile_q)
    row_end = np.minimum(row_begin + tile_q, num_rows)
    visible = kv_len - qo_len + (row_end - 1) // batch.group_size + 1 if batch.causal else kv_len
    assert area == batch.num_kv_heads * int(((row_end - row_begin) * np.clip(visible, 0, kv_len)).sum())


def custom_keys(batch: Batch, item: np.void) -> int:
    """Keys of the tiles that some row of an item's tile of rows sees."""
    kv_len, _ = batch.requests[item["request"]]
    first_key = batch.num_shared_keys(int(item["request"]))
    allowed = batch.allowed(item["request"])[item["row_begin"] : item["row_begin"] + item["num_rows"]]
    sizes = [
        min(TILE_KV, kv_len - key)
        for key in range(first_key, kv_len, TILE_KV)
        if allowed[:, key : key + TILE_KV].any()
    ]
    return (len(sizes) - 1) * TILE_KV + sizes[-1] if sizes else 0


def item_keys(plan: Plan, item: np.void, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The keys of an item, and [token, key] which of them the query tokens see."""
    counted = np.arange(item["kv_begin"], item["kv_end"])
    if item["mask_begin"] < 0:
        last_key = (item["causal_shift"] + tokens)[:, None]
        first_key = (item["window_shift"] + tokens)[:, None]
        return counted, (counted <= last_key) & (counted >= first_key)
    tiles = plan.mask_tiles[item["mask_begin"] + counted // TILE_KV]
    bit = counted % TILE_KV
    rows = tiles["first_row"] + (tokens - tokens[0])[:, None]
    words = plan.mask_rows[np.where(tiles["first_row"] < 0, 0, rows), bit // 32] if len(plan.mask_rows) else 0
    return tiles["tile"] * TILE_KV + bit, (tiles["first_row"] < 0) | ((words >> bit % 32) & 1).astype(bool)


def check_request(batch: Batch, plan: Plan, request: int) -> None:
    """Each (kv head, row, key) that the masks allow is seen exactly once, each row of out has one writer."""
    kv_len, qo_len = batch.requests[request]
    rows = np.arange(qo_len * batch.group_size)
    seen = np.zeros((batch.num_kv_heads, len(rows), kv_len), dtype=np.uint8)
    writers = np.zeros((batch.num_kv_heads, len(rows)), dtype=np.uint8)
    of_prefix = prefix_items(plan)
    for item in plan.items[of_prefix]:
        heads = slice(item["kv_head_begin"], item["kv_head_end"])
        first_row = item["q_token_begin"] * batch.group_size + item["row_begin"]
        shared = first_row + np.arange(item["num_rows"]) - batch.qo_indptr[request] * batch.group_size
        shared = shared[(shared >= 0) & (shared < len(rows))]
        seen[heads, shared, item["kv_begin"] : item["kv_end"]] += 1
    for item in plan.items[(plan.items["request"] == request) & ~of_prefix]:
        heads = slice(item["kv_head_begin"], item["kv_head_end"])
        tile = slice(item["row_begin"], item["row_begin"] + item["num_rows"])
        keys, sees = item_keys(plan, item, rows[tile] // batch.group_size)
        seen[heads, tile, keys] += sees
        is_writer = item["split_tile"] < 0 or item["split_idx"] == 0  # the merge, counted at its first piece
        writers[heads, tile] += is_writer
    assert (writers == 1).all()
    assert (seen == batch.allowed(request)).all()
