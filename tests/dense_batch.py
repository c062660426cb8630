"""Random batches: dense queries, keys and values on a device, what their attention is in float32, and the
same keys and values scattered over pages of any size and layout."""

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

# Scores of one block of queries, so that the largest batch takes a few GB.
MAX_BLOCK_SCORES = 1 << 28

FP8 = torch.float8_e4m3fn
# What a kernel of e4m3 queries may round, from what the tensor cores and cvt.rn.satfinite.e4m3x2 do; relative where
# nothing else is said. A weight of the softmax: by half a step of three bits of mantissa, and below 2^-15 of its row's
# largest, where subnormals end, all of it.
WEIGHT_ROUNDING, SMALLEST_WEIGHT = 2.0**-4, 2.0**-15
# Sums of e4m3 products keep 13 bits of fraction of an instruction's largest term (DeepSeek-V3, section 3.3.2, counts 14
# bits in all), and each of some 32 terms loses what is below: of the sum of the terms' sizes, which is several times the
# largest, this much with room to spare. Of scores and of outputs.
SUM_ROUNDING = 2.0**-11
# Roundings of weights have either sign, and so have random values: their sum stays below this many times the root of
# the sum of the bounds' squares, each of which is more than sqrt(3) standard deviations.
MAX_DEVIATIONS = 3.0


class Lens(NamedTuple):
    """`count` requests of the same lengths, in tokens."""

    kv_len: int
    qo_len: int
    count: int = 1


class Heads(NamedTuple):
    num_kv_heads: int
    group_size: int
    head_dim: int
    head_dim_vo: int = 0  # 0: as of q and k

    @property
    def num_qo_heads(self) -> int:
        return self.num_kv_heads * self.group_size

    @property
    def out_dim(self) -> int:
        return self.head_dim_vo or self.head_dim


@dataclass(frozen=True)
class Masks:
    """What queries see, and what becomes of their scores. Lists are by request."""

    causal: bool | list[bool] = False
    window_left: int = -1
    soft_cap: float = 0.0
    sinks: torch.Tensor | None = None  # [num_qo_heads]
    custom: list[torch.Tensor | None] | None = None  # [qo_len, kv_len] bool each, in place of causal

    def hidden(self, request: int, group: Lens, device: torch.device) -> torch.Tensor:
        """[qo_len, kv_len]"""
        position = group.kv_len - group.qo_len + torch.arange(group.qo_len, device=device)[:, None]
        key = torch.arange(group.kv_len, device=device)
        custom = self.custom[request] if self.custom is not None else None
        causal = self.causal if isinstance(self.causal, bool) else self.causal[request]
        if custom is not None:
            hidden = ~custom.to(device)
        elif causal:
            hidden = key > position
        else:
            hidden = torch.zeros(group.qo_len, group.kv_len, dtype=torch.bool, device=device)
        return hidden | (key < position - self.window_left) if self.window_left >= 0 else hidden


@dataclass(frozen=True)
class Expected:
    """Attention in float32, and how far the same computation in the inputs' precision is from it."""

    out: torch.Tensor  # [total_qo_len, num_qo_heads, head_dim_vo]
    lse: torch.Tensor  # [total_qo_len, num_qo_heads], base 2
    low_precision_error: float  # the largest |low precision - float32| of out
    # Of queries in fp8, the largest errors of each element but for the last rounding of out; else None.
    out_bound: torch.Tensor | None = None
    lse_bound: torch.Tensor | None = None


@dataclass(frozen=True)
class Paged:
    """Arguments of plan() and run() for one layout of a batch."""

    qo_indptr: torch.Tensor
    kv_indptr: torch.Tensor
    kv_indices: torch.Tensor
    kv_len_arr: torch.Tensor
    kv_cache: torch.Tensor | tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class GroupScales:
    """A factor for each kv head of each group of tokens, of K or of V."""

    paged: torch.Tensor  # as run() takes it
    dense: list[torch.Tensor]  # [requests, kv_len, num_kv_heads], in the order of a batch's lens


# What a row of K or V is multiplied by: one factor, [num_kv_heads] of them, or some for each group of tokens.
RowScales = float | torch.Tensor | GroupScales
# How: the groups of a page, "head", "float", "tensor" of one element, or None.
ScaleForm = str | int | None


class DenseBatch:
    """Random q, k and v of a batch, requests of equal lengths side by side so that they are computed together.
    `dtype`: of q. `kv_dtype`: of k and v, None: `dtype`. `out_dtype` None: `dtype`, or bf16 where that is fp8."""

    def __init__(
        self,
        lens: list[Lens],
        heads: Heads,
        dtype: torch.dtype,
        seed: int,
        device: str = "cuda",
        kv_dtype: torch.dtype | None = None,
        out_dtype: torch.dtype | None = None,
    ) -> None:
        self.lens, self.heads, self.dtype, self.device = lens, heads, dtype, torch.device(device)
        self.kv_dtype = kv_dtype or dtype
        self.out_dtype = out_dtype or (torch.bfloat16 if dtype == FP8 else dtype)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.total_qo_len = sum(group.count * group.qo_len for group in lens)
        self.q = self._random(self.total_qo_len, heads.num_qo_heads, heads.head_dim).to(dtype)
        self.k, self.v = (
            [
                self._random(group.count, group.kv_len, heads.num_kv_heads, head_dim).to(self.kv_dtype)
                for group in lens
            ]
            for head_dim in (heads.head_dim, heads.out_dim)
        )

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=self.out_dtype, device=self.device, generator=self.generator)

    def scale_queries(self, factor: float) -> None:
        self.q = (self.q.float() * factor).to(self.dtype)

    def share(self, prefix_groups: list[tuple[int, int, int]]) -> None:
        """Gives the requests of each (request_begin, request_end, num_tokens) the first keys and values of its first
        one, outer groups before those in them."""
        for dense in (self.k, self.v):
            rows = [request for group in dense for request in group]
            for begin, end, num_tokens in sorted(
                prefix_groups, key=lambda group: (group[0], -group[1], group[2])
            ):
                for request in range(begin + 1, end):
                    rows[request][:num_tokens] = rows[begin][:num_tokens]

    def requests(self) -> Iterator[Lens]:
        for group in self.lens:
            yield from [group] * group.count

    def dequantised(
        self, k_scale: RowScales = 1.0, v_scale: RowScales = 1.0, q_scale: RowScales = 1.0
    ) -> "DenseBatch":
        """The same with k and v in float32, times their factors: what a reference of an fp8 cache sees. And q, where it
        is fp8 too."""
        batch = copy.copy(self)
        if self.dtype == FP8:
            by_kv_head = self.q.unflatten(1, (self.heads.num_kv_heads, self.heads.group_size))
            (scaled,) = _times([by_kv_head.transpose(1, 2)], q_scale)
            batch.q = scaled.transpose(1, 2).flatten(1, 2)
        batch.k, batch.v, batch.kv_dtype = _times(self.k, k_scale), _times(self.v, v_scale), torch.float32
        return batch

    def expected(self, masks: bool | Masks, k_scale: float = 1.0, v_scale: float = 1.0) -> Expected:
        """The oracle: plain attention, group by group and in blocks of queries. `masks`: or whether causal."""
        if isinstance(masks, bool):
            masks = Masks(masks)
        out = torch.empty((*self.q.shape[:2], self.heads.out_dim), dtype=torch.float32, device=self.device)
        lse = torch.empty(self.q.shape[:2], dtype=torch.float32, device=self.device)
        low_precision_error = 0.0
        bounds = (torch.zeros_like(out), torch.zeros_like(lse)) if self.dtype == FP8 else None
        row, request = 0, 0
        for group, k, v in zip(self.lens, self.k, self.v, strict=True):
            rows = slice(row, row + group.count * group.qo_len)
            row = rows.stop
            requests = range(request, request + group.count)
            request = requests.stop
            if rows.start == rows.stop:
                continue
            split = (group.count, group.qo_len, self.heads.num_kv_heads, self.heads.group_size)
            q = self.q[rows].unflatten(0, split[:2]).unflatten(2, split[2:])
            group_out = out[rows].view(*split, self.heads.out_dim)
            group_lse = lse[rows].view(split)
            group_bounds = bounds and (bounds[0][rows].view_as(group_out), bounds[1][rows].view(split))
            scores_per_query = group.count * self.heads.num_qo_heads * max(group.kv_len, 1)
            block = max(1, MAX_BLOCK_SCORES // scores_per_query)
            for begin in range(0, group.qo_len, block):
                end = min(begin + block, group.qo_len)
                # Requests that see alike share one mask.
                if isinstance(masks.causal, bool) and masks.custom is None:
                    hidden = masks.hidden(request, group, self.device)[None, begin:end]
                else:
                    hidden = torch.stack([masks.hidden(i, group, self.device)[begin:end] for i in requests])
                low = _attend(
                    q[:, begin:end],
                    k,
                    v,
                    k_scale / math.sqrt(self.heads.head_dim),
                    v_scale,
                    hidden,
                    masks,
                    group_out[:, begin:end],
                    group_lse[:, begin:end],
                    group_bounds and (group_bounds[0][:, begin:end], group_bounds[1][:, begin:end]),
                )
                error = (low.float() - group_out[:, begin:end]).abs().max().item()
                low_precision_error = max(low_precision_error, error)
        return Expected(out, lse, low_precision_error, *(bounds or ()))

    def paged(self, page_size: int, layout: str = "NHD", num_unused_pages: int = 7) -> Paged:
        """Keys and values in shuffled pages. All that belongs to no key is NaN: the tails of last pages and the pages
        of nobody. `layout`: NHD or HND, one tensor; "pair": k and v apart; "strided": k and v apart, as views that
        step over heads, pages and columns of larger tensors, each by strides of its own."""
        num_pages = [math.ceil(group.kv_len / page_size) for group in self.requests()]
        total_pages = sum(num_pages) + num_unused_pages
        indices = torch.randperm(total_pages, device=self.device, generator=self.generator)[: sum(num_pages)]
        kv_cache, views = self._empty_cache(total_pages, page_size, layout)
        for view, dense in zip(views, (self.k, self.v), strict=True):
            _scatter(dense, view, indices)
        return Paged(
            qo_indptr=_indptr([group.qo_len for group in self.requests()]),
            kv_indptr=_indptr(num_pages),
            kv_indices=indices.to(torch.int32),
            kv_len_arr=torch.tensor([group.kv_len for group in self.requests()], dtype=torch.int32),
            kv_cache=kv_cache,
        )

    def group_scales(
        self, paged: Paged, page_size: int, num_groups: int, kv_layout: str = "NHD"
    ) -> GroupScales:
        """Random ones from 0.5 to 2 for the pages of `paged`; NaN where no key is, and in a page of nobody at the end."""
        group_tokens = page_size // num_groups
        num_heads = self.heads.num_kv_heads
        by_group = [
            torch.rand(
                *(group.count, math.ceil(group.kv_len / group_tokens), num_heads, 1),
                device=self.device,
                generator=self.generator,
            )
            .mul_(2)
            .sub_(1)
            .exp2_()
            for group in self.lens
        ]
        cache = paged.kv_cache if isinstance(paged.kv_cache, torch.Tensor) else paged.kv_cache[0]
        pages = by_group[0].new_full((cache.shape[0] + 1, num_groups, num_heads), math.nan)
        _scatter(by_group, pages.unsqueeze(-1), paged.kv_indices.long())
        return GroupScales(
            pages.transpose(1, 2).contiguous() if kv_layout == "HND" else pages,
            [
                scales.squeeze(-1).repeat_interleave(group_tokens, 1)[:, : group.kv_len]
                for group, scales in zip(self.lens, by_group, strict=True)
            ],
        )

    def draw_scale(self, form: ScaleForm, paged: Paged, page_size: int, kv_layout: str = "NHD") -> RowScales:
        if isinstance(form, int):
            return self.group_scales(paged, page_size, form, kv_layout)
        if form == "head":
            heads = self.heads.num_kv_heads
            return torch.rand(heads, device=self.device, generator=self.generator) + 0.5
        return 1.0 if form is None else 0.75

    def _empty_cache(
        self, num_pages: int, page_size: int, layout: str
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """A cache full of NaN as run() takes it, and its k and v as [page, token, head, column]."""
        num_heads, head_dim, out_dim = self.heads.num_kv_heads, self.heads.head_dim, self.heads.out_dim
        assert head_dim == out_dim or layout in ("pair", "strided")

        def full(*shape: int) -> torch.Tensor:
            return torch.full(shape, math.nan, dtype=self.kv_dtype, device=self.device)

        if layout == "NHD":
            cache = full(num_pages, 2, page_size, num_heads, head_dim)
            return cache, (cache[:, 0], cache[:, 1])
        if layout == "HND":
            cache = full(num_pages, 2, num_heads, page_size, head_dim)
            return cache, (cache[:, 0].transpose(1, 2), cache[:, 1].transpose(1, 2))
        if layout == "pair":
            shape = (num_pages, page_size, num_heads)
            pair = full(*shape, head_dim), full(*shape, out_dim)
            return pair, pair
        assert layout == "strided"
        wide_k = full(num_pages, 3, page_size, 2 * num_heads, head_dim + max(8, 16 // self.kv_dtype.itemsize))
        wide_v = full(num_pages, 2, page_size, 3 * num_heads, out_dim + 16)
        pair = wide_k[:, 1, :, ::2, :head_dim], wide_v[:, 1, :, 1::3, 16:]
        return pair, pair


def as_scale_argument(
    form: ScaleForm, scale: RowScales, device: torch.device | str = "cpu"
) -> float | torch.Tensor | None:
    """As run() takes it."""
    if isinstance(scale, GroupScales):
        return scale.paged
    if form == "tensor":
        return torch.tensor([[scale]], device=device)
    return None if form is None else scale


def _scatter(dense: list[torch.Tensor], view: torch.Tensor, indices: torch.Tensor) -> None:
    """Rows [requests, rows, kv heads, column] to the pages `indices` of `view` [page, row, kv head, column], whose last
    ones are filled up with NaN."""
    page_size = view.shape[1]
    begin = 0
    for rows in dense:
        pages_each = math.ceil(rows.shape[1] / page_size)
        padding = pages_each * page_size - rows.shape[1]
        padded = torch.nn.functional.pad(rows, (0, 0, 0, 0, 0, padding), value=math.nan)
        end = begin + rows.shape[0] * pages_each
        view[indices[begin:end]] = padded.reshape(end - begin, page_size, *rows.shape[2:])
        begin = end


def _times(dense: list[torch.Tensor], scales: RowScales) -> list[torch.Tensor]:
    """Rows [requests, key, kv head, column] by their factors, in float32."""
    if isinstance(scales, GroupScales):
        return [rows.float() * factors[..., None] for rows, factors in zip(dense, scales.dense, strict=True)]
    factors = scales if isinstance(scales, torch.Tensor) else torch.tensor(scales)
    return [rows.float() * factors.to(rows.device)[..., None] for rows in dense]


def _indptr(lens: list[int]) -> torch.Tensor:
    return torch.tensor([0, *lens]).cumsum(0).to(torch.int32)


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score_scale: float,
    v_scale: float,
    hidden: torch.Tensor,
    masks: Masks,
    out: torch.Tensor,
    lse: torch.Tensor,
    bounds: tuple[torch.Tensor, torch.Tensor] | None,
) -> torch.Tensor:
    """Attention of q [requests, queries, kv heads, group, column] over k and v [requests, keys, kv heads, column],
    written to `out` and `lse` in float32. Returns the output with the probabilities and the result rounded to q's
    type, as a kernel of that precision has them. `hidden` [requests or 1, queries, keys]: what they do not see. `bounds` of out
    and lse: written where they are given."""
    sinks = None
    if masks.sinks is not None:
        sinks = masks.sinks.to(q.device).view(1, *q.shape[2:4], 1, 1)
    if k.shape[1] == 0 and sinks is None:
        out.zero_()
        lse.fill_(-math.inf)
        return out.to(q.dtype)
    scores = torch.einsum("nqhgd,nkhd->nhgqk", q.float(), k.float()).mul_(score_scale)
    if masks.soft_cap > 0:
        scores.div_(masks.soft_cap).tanh_().mul_(masks.soft_cap)
    scores.masked_fill_(hidden[:, None, None], -math.inf)
    lowest = torch.finfo(torch.float32).min
    peak = (
        scores.amax(-1, keepdim=True) if k.shape[1] > 0 else scores.new_full((*scores.shape[:4], 1), lowest)
    )
    peak = (peak if sinks is None else peak.maximum(sinks)).clamp_min_(lowest)
    probabilities = scores.sub_(peak).exp_()
    total = probabilities.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + (sinks - peak).exp()
    lse.copy_((peak / math.log(2) + total.log2()).squeeze(-1).permute(0, 3, 1, 2))
    # A row that sees no key: 0 / 1.
    total.masked_fill_(total == 0, 1.0).div_(v_scale)
    low = torch.einsum("nhgqk,nkhd->nhgqd", probabilities.to(q.dtype).float(), v.float()).div_(total)
    exact = torch.einsum("nhgqk,nkhd->nhgqd", probabilities, v.float()).div_(total)
    out.copy_(exact.permute(0, 3, 1, 2, 4))
    if bounds is not None:
        out_bound, lse_bound = _fp8_bounds(
            q.float(), k.float(), v.float(), score_scale, probabilities, total, exact
        )
        bounds[0].copy_(out_bound.permute(0, 3, 1, 2, 4))
        bounds[1].copy_(lse_bound.permute(0, 3, 1, 2))
    return low.to(q.dtype).permute(0, 3, 1, 2, 4)


def _fp8_bounds(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    score_scale: float,
    weights: torch.Tensor,
    total: torch.Tensor,
    out: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of out [requests, kv heads, group, queries, column] and lse, for q, k and v as _attend() takes them. `weights`
    relative to the row's peak; what they are divided by in the output: `total`."""
    if k.shape[1] == 0:
        return torch.zeros_like(out), torch.zeros_like(out[..., 0])
    # A weight's relative error by its score's; a soft cap makes it smaller.
    sizes = torch.einsum("nqhgd,nkhd->nhgqk", q.abs(), k.abs()).masked_fill_(weights == 0, 0.0)
    score_error = sizes.amax(-1, keepdim=True) * (score_scale * SUM_ROUNDING)
    errors = torch.maximum(weights * WEIGHT_ROUNDING, weights.clamp_max(SMALLEST_WEIGHT))
    errors += weights * score_error

    def times_v(x: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return torch.einsum("nhgqk,nkhd->nhgqd", x, rows)

    at_worst = times_v(errors, v.abs())
    likely = times_v(errors.square(), v.square()).sqrt_() * MAX_DEVIATIONS
    of_sums = times_v(weights, v.abs()) * SUM_ROUNDING
    # What is divided by is the sum of the rounded weights, and has their errors too.
    sum_error = torch.minimum(
        errors.sum(-1, keepdim=True), errors.norm(dim=-1, keepdim=True) * MAX_DEVIATIONS
    )
    sum_error += weights.sum(-1, keepdim=True) * SUM_ROUNDING
    out_bound = (torch.minimum(at_worst, likely) + of_sums + out.abs() * sum_error) / total
    out_bound += out.abs() * score_error
    return out_bound, score_error.squeeze(-1) / math.log(2)
