"""BatchAttention: the attention of one serving step, planned once and run once a layer."""

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch

from onewave import _core
from onewave._batch import make_batch
from onewave._calibration import read_calibration
from onewave._capture import Captured, is_capturing
from onewave._engine import CpuEngine, DeviceEngine, Engine
from onewave._masks import make_masks
from onewave._ops import call_run, make_handle
from onewave._prefixes import PrefixGroups
from onewave._profiler import Profiler
from onewave._scales import Scale
from onewave._tensors import (
    CheckedTensors,
    KvTensors,
    Shape,
    ShapeArguments,
    TensorChecker,
    default_out_dtype,
    layout_of,
    make_shape,
)
from onewave._validate import (
    ROW_ALIGNMENT,
    check_bool,
    check_int,
    check_kv_layout,
    check_no_grad,
    check_positive_float,
    check_unsupported,
)
from onewave.workspace import FP8, check_workspace, check_workspace_size, make_limits, resolve_device

if TYPE_CHECKING:
    from onewave.trace import Trace


class _Planned(NamedTuple):
    """What run() needs to know of the last plan."""

    checker: TensorChecker
    total_qo_len: int
    max_page_id: int  # -1: not known
    sees_masks: tuple[bool, ...]  # whether a run of each window takes the kernel that looks at them
    logits_soft_cap: float
    use_profiler: bool


class BatchAttention:
    """Attention of a batch of requests over a paged KV cache, any mix of prefill, verification and decode.

    Called like FlashInfer's `BatchAttention`: plan() once a step, run() once a layer, also inside a CUDA graph. A
    graph captured once replays for every later plan() of the same heads, head_dim, dtypes and page_size.

    Keys and values are of q's type or fp8 (e4m3): half the memory, with factors by head or by group of tokens. Beside
    fp8 keys and values queries may be fp8 too, with an output of 16 bits.

    One object serves one thread and one stream at a time.
    """

    def __init__(
        self,
        kv_layout: str = "NHD",
        device: torch.device | str = "cuda",
        *,
        workspace: torch.Tensor | None = None,
        max_batch_size: int = 2048,
        max_total_qo_len: int = 65536,
        max_kv_len: int = 1 << 20,
        num_ctas: int | None = None,
        split_policy: str = "balanced",
        num_windows: int = 1,
        max_mask_bytes: int = 1 << 20,
        max_shared_qo_len: int = 512,
        calibration: str | os.PathLike[str] | None = None,
        max_profiled_runs: int = 32,
        max_profiled_items: int = 128,
    ) -> None:
        """Host only: allocates and copies nothing.

        kv_layout: "NHD" for pages of [page_size, num_kv_heads, head_dim], "HND" for [num_kv_heads, page_size,
            head_dim].
        device: "cuda" for a Hopper GPU; "cpu" runs the same plan on the host, for machines without one.
        workspace: uint8 memory on `device`, `onewave.workspace_size(...)` bytes or more from a multiple of 256;
            None: the first plan() allocates it. It holds the plan, so no two objects may share one. A CPU's runs do
            not use it.
        max_batch_size, max_total_qo_len, max_kv_len: requests, query tokens of all requests and keys of one
            request that a plan may have. They fix the size of the workspace.
        num_ctas: CTAs of the one wave; None: one for each SM (132 on a CPU).
        split_policy: where the keys of a request are cut. "balanced": where SMs end together. "fixed": a request's
            bits depend on that request and the limits alone, not on what else is in the batch or where it stands in
            it. Up to 32 packed rows (qo_len * num_qo_heads / num_kv_heads) are cut into up to 32, 16 or 8 chunks
            (for 8, 16 or 32 rows; fewer where max_batch_size * num_kv_heads is above 4096) of 1 MiB of K and V or
            more; more rows are never cut, so a few long requests of that kind leave SMs idle.
        num_windows: sliding windows of a plan, each with a work list of its own: models whose layers differ in them.
        max_mask_bytes: of a plan's custom masks. For each 128 queries of a request (heads of a kv head counted as
            queries) and 128 keys that some of them see they take 8 bytes, and where not all see all, 16 for each token.
        max_shared_qo_len: query tokens of a plan's prefix_groups, one in several groups counted in each. Each takes
            room in the workspace: for partial results 2 * num_qo_heads rows of 4 * (head_dim_vo + 1) bytes, and
            for work about 220 * num_kv_heads bytes in the plan of each window.
        calibration: file of what work costs on this GPU, as `python -m onewave calibrate` writes it; None: that of
            the package for this GPU, or an H200's where it has none. It moves work between SMs; results differ by
            rounding alone.
        max_profiled_runs, max_profiled_items: with plan(use_profiler=True), the runs of a step, or of all CUDA graphs,
            and the items of a CTA that are recorded: 176 bytes for each item of each CTA of each run, allocated by the
            first such plan().

        Raises onewave.DeviceError for a missing or too old driver and for a GPU that is not Hopper.
        """
        check_kv_layout(kv_layout)
        self._kv_layout = kv_layout
        self._device = resolve_device(device)
        self._limits = make_limits(
            self._device,
            max_batch_size,
            max_total_qo_len,
            max_kv_len,
            num_ctas,
            split_policy,
            num_windows,
            max_mask_bytes,
            max_shared_qo_len,
        )
        if workspace is not None:
            check_workspace(workspace, self._device)
        self._workspace = workspace
        self._calibration = None if calibration is None else read_calibration(calibration)
        self._max_profiled_runs = check_int("max_profiled_runs", max_profiled_runs, 1)
        self._max_profiled_items = check_int("max_profiled_items", max_profiled_items, 1)
        self._profiler: Profiler | None = None
        self._engine: Engine | None = None
        self._planned: _Planned | None = None
        self._captured: Captured | None = None
        self._checked: CheckedTensors | None = None  # of the last run
        self._shape_arguments: ShapeArguments | None = None
        self._checker: TensorChecker | None = None
        # Of an out that torch.compile allocates beside fp8 queries.
        self._fp8_out_dtype = default_out_dtype(FP8)
        self._handle = make_handle(self)

    def plan(
        self,
        qo_indptr: torch.Tensor,
        kv_indptr: torch.Tensor | None,
        kv_indices: torch.Tensor | None,
        kv_len_arr: torch.Tensor,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        causal: bool | torch.Tensor = False,
        sm_scale: float | None = None,
        logits_soft_cap: float | None = None,
        q_data_type: torch.dtype = torch.bfloat16,
        kv_data_type: torch.dtype = torch.bfloat16,
        use_profiler: bool = False,
        *,
        block_table: torch.Tensor | None = None,
        actual_kv_len_arr: torch.Tensor | None = None,
        window_left: int | Sequence[int] = -1,
        custom_mask: torch.Tensor | None = None,
        packed_custom_mask: torch.Tensor | None = None,
        mask_indptr: torch.Tensor | None = None,
        prefix_groups: PrefixGroups | None = None,
        o_data_type: torch.dtype | None = None,
    ) -> None:
        """Plans a step, for all runs until the next plan(). Where it raises, the last plan stays.

        qo_indptr, kv_indptr: int32 [batch_size + 1], where the query tokens and the pages of each request begin.
        kv_indices: int32 [kv_indptr[batch_size]] or more, page ids. On the GPU it is used in place until the next
            plan() and its values are not checked; on the host it is checked and copied.
        kv_len_arr: int32 [batch_size], keys of each request in tokens; 0 is legal, and so is a qo_len of 0.
        block_table: int32 [batch_size or more rows, pages], a row of page ids for each request, of which its keys
            take as many as they need; in place of kv_indptr and kv_indices, which are None then. Handled like
            kv_indices; rows may have any stride.
        actual_kv_len_arr: int32 [batch_size or more] on `device`: what the lengths are, where kv_len_arr has upper
            bounds only (asynchronous scheduling, speculation). plan() enqueues a small kernel that reads it, after what
            is on the stream; update_kv_lens() reads it again. It is used in place until the next plan(); a value above
            its bound counts as the bound, one below 0 as 0. Work is spread over the SMs as for the bounds. The page table
            has entries up to the bounds, which are not looked at above the lengths (on a CPU they are checked).
        head_dim_qk, head_dim_vo: columns of a row of q and k, and of v and out. On a GPU both 64, 96, 128, 192 or 256,
            or 192 and 128; on a CPU any multiples of 32 up to 256.
        causal: query i of a request sees its keys <= kv_len - qo_len + i; else all of them. A bool tensor [batch_size]
            says it for each request.
        window_left: query i sees its keys >= kv_len - qo_len + i - window_left only; -1: all. The keys before are not
            read (but up to 127 of the first that is). A sequence of num_windows of them makes a plan of each, and
            run(window=i) takes the i-th.
        logits_soft_cap: c: a scaled score s becomes c * tanh(s / c); None or 0: it stays.
        custom_mask: bool [sum of qo_len * kv_len], request by request [qo_len, kv_len]: which keys a query sees, in
            place of causal. Runs of 128 keys that no query of a tile sees are not read.
        packed_custom_mask: the same as uint8, a bit each, the low one first, each request from a byte of its own on.
        mask_indptr: int64 [batch_size + 1], the bytes at which they begin, where some requests have no mask and so no
            bytes; they go by causal.
        prefix_groups: requests whose first tokens lie in the same pages, which are then read once for all of them
            (for 128 rows that lie side by side in q, to be exact): a sequence of (request_begin, request_end,
            num_tokens), or an int32 tensor [num_groups, 3] on the host. The requests of a group stand one after
            another in the batch. Groups nest, as paths in a tree of prefixes do: ((0, 64, 16384), (0, 8, 20000)) has
            64 requests that share 16384 tokens, and eight of them 3616 more. Page tables and lengths are those of
            whole requests all the same, and so are results, but for rounding; that the pages are the same is not
            checked. All queries of a group see all its tokens, also by the lengths of an actual_kv_len_arr, which is
            not checked either. What is shared ends at the last multiple of 128 tokens; requests of more than 64 rows
            (qo_len * num_qo_heads / num_kv_heads) and plans of a window read all keys for themselves. Not with
            split_policy "fixed".
        sm_scale: factor of the scores; None: 1 / sqrt(head_dim_qk).
        q_data_type: of q: torch.bfloat16, torch.float16 or, beside a kv_data_type of torch.float8_e4m3fn, that;
            torch.float32 on a CPU too. Queries of fp8 multiply prompts in fp8: also the weights of the softmax are then
            rounded to e4m3, by up to a sixteenth each, and those below 2^-15 of a row's largest may count as 0; an
            output is divided by the sum of the rounded ones, and the lse has that of the exact ones. A CPU, and on a
            GPU requests of up to 32 rows (qo_len * num_qo_heads / num_kv_heads) but for what they share in
            prefix_groups, round none of them so.
        kv_data_type: of kv_cache: q_data_type, or torch.float8_e4m3fn (beside another q_data_type on a GPU only where
            head_dim_qk and head_dim_vo are equal). A decode then reads half the bytes; a prompt's keys are widened on
            their way, which takes a third more time (bench/NOTES.md), unless q is of fp8 too: a tenth less.
        o_data_type: of out: q_data_type, or where that is torch.float8_e4m3fn torch.bfloat16 or torch.float16,
            torch.float32 on a CPU too; None: q_data_type, or torch.bfloat16.
        use_profiler: runs take kernels that record where their time goes, for trace(): slower ones, and there are some
            alone: of bfloat16, and with fp8 of head_dims 64 and 128. The first such plan() allocates the records' memory
            and loads the kernels, each clears them on the stream.

        Cost: planning on the host and one copy to the GPU on the current stream, for each window; it waits only when
        four earlier copies are still in flight. Upper bounds add one small launch, for each window. Custom masks are
        read on the host, bit by bit, and copied there where they are not. Prefix groups make a plan of 64 decodes
        take about twice as long; 2048 shared tokens pay, fewer are not measured (bench/results/prefixes_h100.json). Length
        tensors on the GPU add three copies and one synchronisation of the stream, a kv_indices on the host one copy
        and two allocations. The first plan of a shape allocates.

        Raises ValueError or TypeError for arguments, also for more query tokens or pages than the tensors have that
        a CUDA graph was captured with; RuntimeError on a capturing stream, inside torch.compile and for another shape
        than the graph's.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "plan() is inside torch.compile; it must run outside, and a graph takes the last plan"
            )
        check_bool("use_profiler", use_profiler)
        checker = self._checker_of(
            (
                num_qo_heads,
                num_kv_heads,
                head_dim_qk,
                head_dim_vo,
                page_size,
                q_data_type,
                kv_data_type,
                o_data_type,
            )
        )
        shape = checker.shape
        scale = 1 / math.sqrt(head_dim_qk) if sm_scale is None else check_positive_float("sm_scale", sm_scale)
        if is_capturing(self._device):
            raise RuntimeError(
                "the current stream is capturing; plan() must run outside the capture, and a replay takes the last plan"
            )
        if self._captured is not None:
            self._captured.check_shape(shape, use_profiler)
        batch = make_batch(
            self._device,
            qo_indptr,
            kv_indptr,
            kv_indices,
            kv_len_arr,
            block_table,
            actual_kv_len_arr,
            shape.page_size,
            prefix_groups,
        )
        masks = make_masks(
            self._limits.num_windows,
            causal,
            logits_soft_cap,
            window_left,
            custom_mask,
            packed_custom_mask,
            mask_indptr,
            batch.qo_indptr,
            batch.kv_len_arr,
        )
        if self._captured is not None:
            self._captured.check_batch(batch, masks.are_seen())
        is_same_shape = self._planned is not None and self._planned.checker.shape == shape
        engine = self._engine if self._engine is not None and is_same_shape else self._make_engine(shape)
        if use_profiler:
            engine.load_profiler()
            self._profiler = self._profiler or self._make_profiler()
        engine.plan(batch, masks, scale)
        self._engine = engine
        if use_profiler and self._profiler is not None:
            self._profiler.begin_plan(shape.to_core(), batch)
        if not is_same_shape:
            self._checked = None
        if shape.dtype == FP8:
            self._fp8_out_dtype = shape.out_dtype
        self._planned = _Planned(
            checker,
            batch.total_qo_len,
            batch.max_page_id,
            masks.are_seen(),
            masks.logits_soft_cap,
            use_profiler,
        )

    def update_kv_lens(self) -> None:
        """Reads the plan's actual_kv_len_arr once more: all runs after it have the lengths that stand there then.

        For lengths that change between two runs of one plan, or are written inside the CUDA graph that has the runs: a
        replay reads the tensor that was given to the last plan(). Without one it does nothing.

        Cost: one small launch on the current stream. Raises RuntimeError before the first plan(), and inside
        torch.compile.
        """
        if torch.compiler.is_compiling():
            raise RuntimeError(
                "update_kv_lens() is inside torch.compile; it must run outside, before the graph"
            )
        if self._engine is None:
            raise RuntimeError("update_kv_lens() needs a plan; call plan() first")
        self._engine.update_kv_lens()

    def run(
        self,
        q: torch.Tensor,
        kv_cache: KvTensors,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        k_scale: float | torch.Tensor | None = None,
        v_scale: float | torch.Tensor | None = None,
        logits_soft_cap: float = 0.0,
        profiler_buffer: torch.Tensor | None = None,
        kv_cache_sf: torch.Tensor | None = None,
        *,
        sm_scale: float | torch.Tensor | None = None,
        q_scale: float | torch.Tensor | None = None,
        return_lse: bool = True,
        enable_pdl: bool = False,
        window: int = 0,
        sinks: torch.Tensor | None = None,
        natural_lse: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The attention of one layer, by the last plan. Returns (out, lse).

        q: [total_qo_len, num_qo_heads, head_dim_qk] of the plan's q_data_type.
        kv_cache: [num_pages, 2, page_size, num_kv_heads, head_dim] (HND: heads before tokens) of the plan's
            kv_data_type, or a (k, v) pair of such tensors without the second dimension, with any strides; v's rows may
            have another head_dim than k's.
        out: [total_qo_len, num_qo_heads, head_dim_vo] of the plan's o_data_type; a row that sees no key becomes 0.
        lse: float32 [total_qo_len, num_qo_heads], the log-sum-exp of the scaled scores in base 2, -inf for such a row.
            None: `out` and `lse` are allocated.
        k_scale, v_scale: factors of all scores and of the output; floats, or float32 tensors of one element that
            are read by the launch. For a cache of float8_e4m3fn also a factor for each kv head's keys or values,
            float32 [num_kv_heads], or for each group of page_size / num_groups consecutive tokens of a page, float32
            [num_pages or more, num_groups, num_kv_heads] (HND: heads before groups), with any strides; num_groups
            divides page_size. A row's k_scale is in its scores before the soft cap. On a GPU those of groups are for
            queries of 16 bits, head_dims up to 128 and pages of up to 32768 tokens.
        sm_scale: in place of the plan's; a float or a float32 tensor of one element.
        q_scale: for queries of float8_e4m3fn alone: another factor of the scores, before the soft cap; a float, or a
            float32 tensor of one element or [num_kv_heads], a factor for the queries of each kv head, with any stride,
            that is read by the launch.
        return_lse: False: no lse is written, and None returned.
        natural_lse: the lse is in base e.
        window: which of the plan's windows.
        sinks: float32 [num_qo_heads], a logit that each row of the head has beside its keys' scaled scores, and to
            which no value belongs: it makes the output smaller, and is in the lse. A row without keys has this lse.
        logits_soft_cap: 0.0: the plan's; another value must equal it.
        profiler_buffer: profiler_buffer_size() bytes or more on `device`, contiguous and zeros before its first run:
            where the time of this run goes, after a plan(use_profiler=True). A CUDA graph bakes it in. None: to memory of
            the object's own.
        enable_pdl: programmatic dependent launch: the kernel may begin while the one before it on the stream still
            runs, and waits for its end before it reads q and kv_cache. No effect on a CPU.

        Rows start at multiples of 16 bytes and have a stride of 1; other strides of q and out are int32. q, out and lse
        may have more rows than the plan: those are neither read nor written.

        Inside torch.compile it is an operator of the graph, onewave::run, which takes the last plan at each call. With
        mode="reduce-overhead", whose CUDA graphs copy every input that may move, kv_cache is a buffer of the module or
        marked by torch._dynamo.mark_static_address, out and lse are None, and all calls have as many rows of q.

        Cost: one launch on the current stream; it never synchronises, and allocates only an `out` or `lse` that is
        None. On a CPU it returns when the work is done. Raises ValueError or TypeError for arguments, RuntimeError
        before the first plan(), and in grad mode for a tensor that requires grad: there is no backward.
        """
        if logits_soft_cap is not None and (type(logits_soft_cap) is not float or logits_soft_cap != 0.0):
            self._check_soft_cap(logits_soft_cap)
        if kv_cache_sf is not None:
            check_unsupported("kv_cache_sf", kv_cache_sf, (None,))
        check_bool("return_lse", return_lse)
        if lse is not None and not return_lse:
            raise ValueError("lse is given; it must be None with return_lse=False")
        if not torch.compiler.is_compiling():
            # Without the operator, whose dispatch each layer would pay for.
            return self._run(
                q,
                kv_cache,
                out,
                lse,
                k_scale,
                v_scale,
                sm_scale,
                q_scale,
                return_lse,
                enable_pdl,
                window,
                sinks,
                natural_lse,
                profiler_buffer,
            )
        if profiler_buffer is not None:
            raise ValueError(
                "profiler_buffer is given; it must be None inside torch.compile, where runs take the profiler's own memory"
            )
        # By q alone where it can be, so that a graph depends on as little as possible.
        out_dtype = self._fp8_out_dtype if q.dtype == FP8 else q.dtype
        out, lse = _allocate(q, kv_cache, out, lse, return_lse, out_dtype)
        call_run(
            self._handle,
            q,
            kv_cache,
            out,
            lse,
            k_scale,
            v_scale,
            sm_scale,
            q_scale,
            enable_pdl,
            window,
            sinks,
            natural_lse,
        )
        return out, lse

    def _check_soft_cap(self, logits_soft_cap: float) -> None:
        """Never a result of another cap than the caller thinks."""
        if torch.compiler.is_compiling():
            raise ValueError(
                f"logits_soft_cap is {logits_soft_cap}; it must be 0.0 inside torch.compile: a graph takes the last plan's"
            )
        if self._planned is None:
            raise RuntimeError("run() needs a plan; call plan() first")
        planned = self._planned.logits_soft_cap
        if check_positive_float("logits_soft_cap", logits_soft_cap) != planned:
            raise ValueError(
                f"logits_soft_cap is {logits_soft_cap}; it must be 0.0 or equal the plan's, {planned}"
            )

    def _run(
        self,
        q: torch.Tensor,
        kv_cache: KvTensors,
        out: torch.Tensor | None,
        lse: torch.Tensor | None,
        k_scale: Scale,
        v_scale: Scale,
        sm_scale: Scale,
        q_scale: Scale,
        return_lse: bool,
        enable_pdl: bool,
        window: int,
        sinks: torch.Tensor | None,
        natural_lse: bool,
        profiler_buffer: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """run(), also where it was compiled: all that needs the plan or the tensors' memory."""
        planned, checked = self._planned, self._checked
        if self._engine is None or planned is None:
            raise RuntimeError("run() needs a plan; call plan() first")
        if torch.is_grad_enabled():
            check_no_grad(
                q=q,
                kv_cache=kv_cache,
                out=out,
                lse=lse,
                k_scale=k_scale,
                v_scale=v_scale,
                sm_scale=sm_scale,
                q_scale=q_scale,
                sinks=sinks,
            )
        layout = layout_of(q, kv_cache, out, lse, return_lse)
        if (
            checked is None
            or layout is None
            or checked.layout != layout
            or checked.num_rows < planned.total_qo_len
            or checked.num_pages <= planned.max_page_id
        ):
            checked = self._check_tensors(planned, q, kv_cache, out, lse, return_lse)
        k, v = kv_cache if isinstance(kv_cache, (tuple, list)) else (kv_cache, None)
        q_address, k_address = q.data_ptr(), k.data_ptr()
        v_address = k_address + checked.v_offset if v is None else v.data_ptr()
        given = q_address | k_address | v_address | (0 if out is None else out.data_ptr())
        if given % ROW_ALIGNMENT != 0:
            self._check_tensors(planned, q, kv_cache, out, lse, return_lse)  # says which
        check_bool("enable_pdl", enable_pdl)
        scales = None
        if not (sm_scale is None and k_scale is None and v_scale is None and q_scale is None):
            scales = planned.checker.scales.check(sm_scale, k_scale, v_scale, q_scale, checked.num_pages)
        options = None
        if type(window) is not int or window != 0 or sinks is not None or natural_lse is not False:
            options = self._check_options(planned, window, sinks, natural_lse)
        if profiler_buffer is not None:
            if not planned.use_profiler or self._profiler is None:
                raise ValueError(
                    "profiler_buffer is given; it must be None after a plan() without use_profiler"
                )
            self._profiler.check(profiler_buffer)
        # No check comes after it.
        if out is None or lse is None:
            out, lse = _allocate(q, kv_cache, out, lse, return_lse, planned.checker.shape.out_dtype)
        lse_address = 0 if lse is None else lse.data_ptr()
        args = checked.args.at(q_address, k_address, v_address, out.data_ptr(), lse_address)
        if scales is not None:
            args.set_scales(*scales)
        if options is not None:
            args.set_options(*options)
        is_captured = is_capturing(self._device)
        if planned.use_profiler and self._profiler is not None:
            launch = partial(self._engine.run, args, window, enable_pdl)
            self._profiler.record(args, launch, is_captured, profiler_buffer)
        else:
            self._engine.run(args, window, enable_pdl)
        if is_captured:
            self._captured = self._captured or Captured(
                planned.checker.shape, planned.use_profiler, checked.num_rows, checked.num_pages
            )
            self._captured.include(checked.num_rows, checked.num_pages)
            if sinks is None and not planned.sees_masks[window] and not args.is_scaled_by_group:
                self._captured.unmasked_windows |= {window}
        return out, lse

    def _check_options(
        self, planned: _Planned, window: int, sinks: torch.Tensor | None, natural_lse: bool
    ) -> tuple[int, bool, int]:
        """In the order of RunArgs.set_options()."""
        check_int("window", window, 0, self._limits.num_windows - 1)
        check_bool("natural_lse", natural_lse)
        address = 0 if sinks is None else planned.checker.check_sinks(sinks).data_ptr()
        return address, natural_lse, window

    def _check_tensors(
        self,
        planned: _Planned,
        q: torch.Tensor,
        kv_cache: KvTensors,
        out: torch.Tensor | None,
        lse: torch.Tensor | None,
        return_lse: bool,
    ) -> CheckedTensors:
        """Of a layout that is not the last run's."""
        checked = planned.checker.check_run(q, kv_cache, out, lse, return_lse, planned.total_qo_len)
        _check_page_ids(planned.max_page_id, checked.num_pages)
        self._checked = checked
        return checked

    def prewarm_paged_kv_stride_variant(self, variant: str = "independent") -> None:
        """Does nothing: FlashInfer compiles a second kernel for caches whose k and v differ in strides, and this
        loads it before a capture. Here one kernel takes all strides and plan() has loaded it."""

    def plan_bytes(self, window: int = 0) -> bytes:
        """A copy of the last plan, that of a window, for onewave.plan_format. Host only."""
        if self._engine is None:
            raise RuntimeError("plan_bytes() needs a plan; call plan() first")
        return self._engine.plan_bytes(check_int("window", window, 0, self._limits.num_windows - 1))

    def trace(self, profiler_buffer: torch.Tensor | None = None) -> "Trace":
        """Where the time of the runs since the last plan(use_profiler=True) went, replays of CUDA graphs among them: see
        onewave.trace.Trace. Of several replays since that plan() the last one's.

        profiler_buffer: the one that a run() was given; None: of all others.

        Cost: a copy to the host, which waits for the current stream. Raises RuntimeError before such a plan().
        """
        if (
            self._engine is None
            or self._planned is None
            or self._profiler is None
            or not self._planned.use_profiler
        ):
            raise RuntimeError("trace() needs a plan with the profiler; call plan(use_profiler=True) first")
        return self._profiler.trace(self._engine.plan_bytes, profiler_buffer)

    def profiler_buffer_size(self, max_items: int = 128) -> int:
        """Bytes of a profiler_buffer of run(), with room for `max_items` items of each CTA (an item once for each step of
        its kv heads). Host only."""
        return _core.profile_bytes(self._limits.num_ctas, check_int("max_items", max_items, 1))

    def _make_profiler(self) -> Profiler:
        calibration = None
        if self._device.type == "cuda":
            gpu = _core.device_info(self._device.index).name
            calibration = self._calibration or _core.calibration_of(gpu)
        return Profiler(
            self._device,
            self._limits.num_ctas,
            self._max_profiled_runs,
            self._max_profiled_items,
            calibration,
        )

    def _checker_of(self, arguments: ShapeArguments) -> TensorChecker:
        """That of the last call where the arguments are the same, as they are from step to step."""
        if arguments != self._shape_arguments:
            shape = make_shape(self._device, *arguments)
            self._checker = TensorChecker(self._device, self._kv_layout, shape)
            self._shape_arguments = arguments
        assert self._checker is not None
        return self._checker

    def _make_engine(self, shape: Shape) -> Engine:
        core_shape = shape.to_core()
        num_bytes = _core.workspace_layout(self._limits, core_shape).total_bytes
        if self._workspace is not None:
            check_workspace_size(self._workspace, num_bytes)
        if self._device.type == "cpu":
            return CpuEngine(self._limits, core_shape, self._calibration)
        workspace = self._workspace
        if workspace is None:
            workspace = torch.empty(num_bytes, dtype=torch.uint8, device=self._device)
        return DeviceEngine(self._device, self._limits, core_shape, workspace, self._calibration)


def _allocate(
    q: torch.Tensor,
    kv_cache: KvTensors,
    out: torch.Tensor | None,
    lse: torch.Tensor | None,
    return_lse: bool,
    out_dtype: torch.dtype,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The outputs of a run, those that are missing for as many rows as q has, and columns as v."""
    if out is None:
        v = kv_cache if isinstance(kv_cache, torch.Tensor) else kv_cache[1]
        out = torch.empty((*q.shape[:2], v.shape[-1]), dtype=out_dtype, device=q.device)
    if lse is None and return_lse:
        lse = torch.empty(q.shape[:2], dtype=torch.float32, device=q.device)
    return out, lse


def _check_page_ids(max_page_id: int, num_pages: int) -> None:
    if max_page_id >= num_pages:
        raise ValueError(
            f"kv_indices of the plan has page id {max_page_id}; it must be below {num_pages}, the pages of kv_cache"
        )
