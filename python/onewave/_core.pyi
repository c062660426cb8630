"""The C++ side of onewave. Addresses are integers (0: null); length arrays are contiguous int32."""

from collections.abc import Sequence
from enum import Enum

version: str

class DeviceError(RuntimeError):
    """The machine cannot do what was asked: driver, GPU or a CUDA call."""

class DType(Enum):
    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    FLOAT8_E4M3 = 3

class Loader(Enum):
    """How K and V reach shared memory."""

    TMA = 0
    GATHER = 1

class SplitPolicy(Enum):
    """Where the keys of a request may be cut."""

    BALANCED = 0
    FIXED = 1

class PlanLimits:
    """What every batch of one object stays within."""

    def __init__(
        self,
        max_batch_size: int,
        max_total_qo_len: int,
        max_kv_len: int,
        num_ctas: int,
        split_policy: SplitPolicy = SplitPolicy.BALANCED,
        num_windows: int = 1,
        max_mask_bytes: int = 0,
        max_shared_qo_len: int = 0,
    ) -> None: ...
    @property
    def max_batch_size(self) -> int: ...
    @property
    def max_total_qo_len(self) -> int: ...
    @property
    def max_kv_len(self) -> int: ...
    @property
    def num_ctas(self) -> int: ...
    @property
    def split_policy(self) -> SplitPolicy: ...
    @property
    def num_windows(self) -> int: ...
    @property
    def max_mask_bytes(self) -> int: ...
    @property
    def max_shared_qo_len(self) -> int: ...

class AttentionShape:
    def __init__(
        self,
        num_qo_heads: int,
        num_kv_heads: int,
        head_dim_qk: int,
        head_dim_vo: int,
        page_size: int,
        dtype: DType,
        kv_dtype: DType | None = None,
        out_dtype: DType | None = None,
    ) -> None:
        """`kv_dtype` None: dtype. `out_dtype` None: dtype, or BFLOAT16 where that is FLOAT8_E4M3."""

    @property
    def num_qo_heads(self) -> int: ...
    @property
    def num_kv_heads(self) -> int: ...
    @property
    def head_dim_qk(self) -> int: ...
    @property
    def head_dim_vo(self) -> int: ...
    @property
    def page_size(self) -> int: ...
    @property
    def dtype(self) -> DType: ...
    @property
    def kv_dtype(self) -> DType: ...
    @property
    def out_dtype(self) -> DType: ...

class MemoryRate:
    """What the memory gives to so many CTAs together."""

    def __init__(self, num_ctas: int, gb_per_s: float) -> None: ...

class KernelRates:
    """Of one kernel on one CTA."""

    def __init__(
        self,
        head_dim: int,
        loader: Loader,
        q_bytes: int,
        kv_bytes: int,
        wide_step_us: float,
        wide_unit_us: float,
        wide_slowdown: float,
        wide_unit_slowdown: float,
        narrow_unit_us: float,
        narrow_gb_per_s: Sequence[float],
    ) -> None: ...

class Calibration:
    """What work costs on one GPU."""

    def __init__(
        self,
        gpu: str,
        launch_us: float,
        split_us: float,
        partial_gb_per_s: float,
        memory: list[MemoryRate],
        kernels: list[KernelRates],
    ) -> None: ...
    @property
    def gpu(self) -> str: ...
    def memory_gb_per_s(self, num_ctas: int) -> float: ...

class CostModel:
    """A calibration for one shape."""

    def __init__(self, shape: AttentionShape, calibration: Calibration) -> None:
        """ValueError where the calibration lacks the shape's loader or has a rate beyond 1e-6 to 1e6."""

    @property
    def launch_us(self) -> float: ...

def calibrations() -> list[Calibration]:
    """Those in the library."""

def calibration_of(gpu: str) -> Calibration:
    """By a GPU's name; the H200's for one that is not known."""

class WorkspaceLayout:
    """Offsets and sizes of the workspace, in bytes; the plan lies at its start."""

    @property
    def plan_bytes(self) -> int: ...
    @property
    def partial_lse_offset(self) -> int: ...
    @property
    def partial_out_offset(self) -> int: ...
    @property
    def total_bytes(self) -> int: ...
    @property
    def max_partial_rows(self) -> int: ...

def workspace_layout(limits: PlanLimits, shape: AttentionShape) -> WorkspaceLayout:
    """The exact workspace for these limits. ValueError for limits or shapes that cannot be."""

def plan_batch(
    limits: PlanLimits,
    shape: AttentionShape,
    causal: bool,
    sm_scale: float,
    batch_size: int,
    qo_indptr: int,
    kv_indptr: int,
    kv_len_arr: int,
    kv_indices: int,
    costs: CostModel | None = None,
    block_table_width: int = 0,
    block_table_stride: int = 0,
    actual_kv_len_arr: int = 0,
    window_left: int = -1,
    logits_soft_cap: float = 0.0,
    causal_arr: int = 0,
    custom_mask: int = 0,
    mask_indptr: int = 0,
    prefix_groups: int = 0,
    num_prefix_groups: int = 0,
) -> bytes:
    """The plan of one step: host addresses of arrays, and an address of page ids that is only stored. `costs` are of
    the shape; None: what an H200 costs."""

def predict_items(
    plan: bytes,
    shape: AttentionShape,
    batch_size: int,
    qo_indptr: int,
    costs: CostModel | None = None,
    prefix_groups: int = 0,
    num_prefix_groups: int = 0,
) -> list[float]:
    """What the planner took each item to cost, in microseconds."""

PROFILE_PHASES: list[str]
PROFILE_MAGIC: int
PROFILE_VERSION: int
MAX_PROFILE_TRACKS: int
PROFILE_TRACKS_OFFSET: int
PROFILE_CYCLES_OFFSET: int

def profile_bytes(num_ctas: int, max_items: int) -> int: ...
def profile_layout() -> dict[str, tuple[int, list[tuple[str, str, int]]]]:
    """As plan_layout(), of the records of profile.h; an ItemProfile begins with a WorkItem, its tracks are at
    PROFILE_TRACKS_OFFSET, and the cycles of each of these at PROFILE_CYCLES_OFFSET: uint32, one for each of PROFILE_PHASES."""

def plan_layout() -> dict[str, tuple[int, list[tuple[str, str, int]]]]:
    """Of each record of a plan: its size, and of each field the name, struct-module character and offset."""

class RunArgs:
    """The tensors of one run; strides are in elements."""

    def __init__(
        self,
        dtype: DType,
        q: int,
        q_token_stride: int,
        q_head_stride: int,
        k: int,
        k_page_stride: int,
        k_token_stride: int,
        k_head_stride: int,
        v: int,
        v_page_stride: int,
        v_token_stride: int,
        v_head_stride: int,
        num_pages: int,
        out: int,
        out_token_stride: int,
        out_head_stride: int,
        num_rows: int,
        lse: int,
        sm_scale: float,
        k_scale: float,
        v_scale: float,
        sm_scale_ptr: int,
        k_scale_ptr: int,
        v_scale_ptr: int,
        kv_dtype: DType | None = None,
        out_dtype: DType | None = None,
    ) -> None:
        """Types that are None are as AttentionShape has them."""

    def at(self, q: int, k: int, v: int, out: int, lse: int) -> RunArgs:
        """The same of tensors at these addresses."""

    def set_scales(
        self,
        sm_scale: float,
        k_scale: float,
        v_scale: float,
        sm_scale_ptr: int,
        k_scale_ptr: int,
        v_scale_ptr: int,
        k_scale_page_stride: int = 0,
        k_scale_group_stride: int = 0,
        k_scale_head_stride: int = 0,
        k_group_tokens: int = 1,
        v_scale_page_stride: int = 0,
        v_scale_group_stride: int = 0,
        v_scale_head_stride: int = 0,
        v_group_tokens: int = 1,
        q_scale_ptr: int = 0,
        q_scale_head_stride: int = 0,
    ) -> None:
        """Where all strides are 0 there is one factor. k_scale is that of q too, as far as it is a float."""

    @property
    def is_scaled_by_group(self) -> bool:
        """Whether groups of tokens have factors of their own, and not heads alone."""

    def set_options(self, sinks: int, natural_lse: bool, window: int) -> None: ...
    def set_profile(self, profile: int, num_bytes: int) -> None: ...

def update_kv_lens(plan: bytes) -> bytes:
    """The plan with the lengths that its actual_kv_len_arr, on the host, has now; as it is without one."""

def execute_plan(plan: bytes, args: RunArgs, num_threads: int) -> None:
    """Runs a plan on the CPU with num_threads threads (0: one per core), without holding the GIL."""

class DeviceInfo:
    @property
    def name(self) -> str: ...
    @property
    def num_sms(self) -> int: ...
    @property
    def capability_major(self) -> int: ...
    @property
    def capability_minor(self) -> int: ...
    @property
    def driver_version(self) -> int: ...

class KernelInfo:
    """A cubin of attention inside the library."""

    @property
    def dtype(self) -> DType: ...
    @property
    def kv_dtype(self) -> DType: ...
    @property
    def head_dim_qk(self) -> int: ...
    @property
    def head_dim_vo(self) -> int: ...
    @property
    def loader(self) -> Loader: ...
    @property
    def is_masked(self) -> bool: ...
    @property
    def is_profiled(self) -> bool: ...
    @property
    def num_bytes(self) -> int: ...

def device_info(device: int) -> DeviceInfo:
    """DeviceError where there is no driver, it is too old, or the GPU is not Hopper."""

def list_kernels() -> list[KernelInfo]: ...
def choose_loader(page_size: int) -> Loader: ...

class DeviceAttention:
    """Plans and launches on one device, in a workspace that the caller owns and keeps alive."""

    def __init__(
        self,
        device: int,
        limits: PlanLimits,
        shape: AttentionShape,
        workspace: int,
        calibration: Calibration | None = None,
    ) -> None:
        """`calibration` None: that of the device's name."""

    def plan(
        self,
        causal: bool,
        sm_scale: float,
        batch_size: int,
        qo_indptr: int,
        kv_indptr: int,
        kv_len_arr: int,
        kv_indices: int,
        stream: int,
        block_table_width: int = 0,
        block_table_stride: int = 0,
        actual_kv_len_arr: int = 0,
        window_lefts: Sequence[int] = (-1,),
        logits_soft_cap: float = 0.0,
        causal_arr: int = 0,
        custom_mask: int = 0,
        mask_indptr: int = 0,
        prefix_groups: int = 0,
        num_prefix_groups: int = 0,
    ) -> None:
        """Enqueues one copy on `stream`; kv_indices is a device address, used in place until the next plan."""

    def load_profiler(self) -> None: ...
    def update_kv_lens(self, stream: int) -> None:
        """One small launch on `stream` that reads the last plan's actual_kv_len_arr."""

    def run(self, args: RunArgs, stream: int, enable_pdl: bool = False) -> None:
        """One launch on `stream`; neither allocates nor synchronises."""

    def plan_bytes(self, window: int = 0) -> bytes:
        """A copy of the last plan, for inspection."""

class RowTensor:
    """Rows [token, head]; strides in elements."""

    def __init__(self, data: int, token_stride: int, head_stride: int) -> None: ...

class PagedTensor:
    """Rows [page, token, head]; strides in elements."""

    def __init__(self, data: int, page_stride: int, token_stride: int, head_stride: int) -> None: ...

class HeadScales:
    """Factors of fp8 rows, float32: at data + head * head_stride elements, or `scale` for all where data is 0."""

    def __init__(self, data: int = 0, head_stride: int = 0, scale: float = 1.0) -> None: ...

class StateSet:
    """v [token, state, head, column] and s [token, state, head]; strides in elements."""

    def __init__(
        self,
        v: int,
        v_token_stride: int,
        v_state_stride: int,
        v_head_stride: int,
        s: int,
        s_token_stride: int,
        s_state_stride: int,
        s_head_stride: int,
        num_states: int,
    ) -> None: ...

def append_paged_kv_cache(
    device: int,
    dtype: DType,
    kv_dtype: DType,
    num_kv_heads: int,
    head_dim_qk: int,
    head_dim_vo: int,
    page_size: int,
    append_key: RowTensor,
    append_value: RowTensor,
    batch_indices: int,
    positions: int,
    num_rows: int,
    batch_size: int,
    k: PagedTensor,
    v: PagedTensor,
    num_pages: int,
    num_kv_indices: int,
    kv_indices: int,
    kv_indptr: int,
    k_scale: HeadScales,
    v_scale: HeadScales,
    stream: int,
) -> None:
    """One launch on `stream`; the first on a device loads the kernel."""

def merge_states(
    device: int,
    dtype: DType,
    num_tokens: int,
    num_heads: int,
    head_dim: int,
    first: StateSet,
    second: StateSet,
    out: RowTensor,
    lse: int,
    lse_token_stride: int,
    lse_head_stride: int,
    mask: int,
    stream: int,
) -> None:
    """One launch on `stream`; the first on a device loads the kernel."""
