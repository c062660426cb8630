"""The launcher against a made-up driver (fake_driver.c): errors of machines we do not have, and what a plan() and a
run() ask of a driver. No GPU is needed, and none is touched where there is one."""

import ctypes
import multiprocessing
import re
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from onewave import _core

NUM_CTAS = 8
WORKSPACE_ALIGNMENT = 128
PAGE_SIZE = 16
NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM = 8, 2, 128
NUM_PAGES = 40
KV_LEN = 200
BFLOAT16_MAP = 9  # CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
# struct KernelParams of cuda/params.h, up to v_scale.
PARAMS = struct.Struct("<Q4iQQ4iQQQQQffQ3I4xQ3I4x128s")

Check = Callable[[Path], None]


@pytest.fixture(scope="module")
def fake_driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler for the made-up driver")
    library = tmp_path_factory.mktemp("driver") / "libcuda.so.1"
    source = Path(__file__).with_name("fake_driver.c")
    command = [compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source, "-ldl"]
    subprocess.run(command, check=True)
    return library


@pytest.fixture
def counted_news(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that start from now on count the calls of C++'s operator new."""
    compiler, library = shutil.which("cc"), tmp_path / "count_news.so"
    if compiler is None:
        pytest.skip("no C compiler for the counting operator new")
    source = (
        "#include <stdlib.h>\nint num_news; void* _Znwm(size_t size) { return num_news++, malloc(size); }"
    )
    command = [compiler, "-shared", "-fPIC", "-xc", "-", "-o", library]
    subprocess.run(command, input=source, text=True, check=True)
    monkeypatch.setenv("LD_PRELOAD", str(library))


@pytest.fixture
def elsewhere() -> Iterator[ProcessPoolExecutor]:
    """A fresh process: a driver is opened once in each."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


class FakeDriver:
    """The made-up driver, loaded under the name that the library looks for."""

    def __init__(self, path: Path, **machine: int) -> None:
        self.library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
        for name, value in machine.items():
            self.set(name, value)

    def set(self, name: str, value: int) -> None:
        ctypes.c_int.in_dll(self.library, name).value = value

    def get(self, name: str) -> int:
        return ctypes.c_int.in_dll(self.library, name).value


class MapRequest(ctypes.Structure):
    _fields_ = (
        ("data_type", ctypes.c_int),
        ("rank", ctypes.c_uint),
        ("address", ctypes.c_uint64),
        ("dims", ctypes.c_uint64 * 5),
        ("strides", ctypes.c_uint64 * 4),
        ("box", ctypes.c_uint * 5),
    )


class Step:
    """One decode of KV_LEN keys, in host memory that plays the device's."""

    def __init__(self, page_size: int = PAGE_SIZE, max_total_qo_len: int = 64) -> None:
        self.limits = _core.PlanLimits(4, max_total_qo_len, 1024, NUM_CTAS)
        self.shape = _core.AttentionShape(
            NUM_QO_HEADS, NUM_KV_HEADS, HEAD_DIM, page_size, _core.DType.BFLOAT16
        )
        self.layout = _core.workspace_layout(self.limits, self.shape)
        self.memory = np.zeros(self.layout.total_bytes + WORKSPACE_ALIGNMENT, np.uint8)
        self.workspace = -(-self.memory.ctypes.data // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT
        num_pages = -(-KV_LEN // page_size)
        self.arrays = tuple(np.array(a, np.int32) for a in ([0, 1], [0, num_pages], [KV_LEN]))
        self.attention = _core.DeviceAttention(0, self.limits, self.shape, self.workspace)

    @property
    def spec(self) -> tuple[bool, float, int, int, int, int, int]:
        qo_indptr, kv_indptr, kv_len_arr = (array.ctypes.data for array in self.arrays)
        return True, 0.1, 1, qo_indptr, kv_indptr, kv_len_arr, 0xBEEF0

    def plan(self, qo_len: int = 1, kv_len: int = KV_LEN) -> None:
        qo_indptr, _, kv_len_arr = self.arrays
        qo_indptr[1], kv_len_arr[0] = qo_len, kv_len
        self.attention.plan(*self.spec, 0)

    def run(self, **changes: float | _core.DType) -> None:
        self.attention.run(self.run_args(**changes), 0)

    def refuses(self, message: str, **changes: float | _core.DType) -> None:
        with pytest.raises(ValueError, match=message):
            self.run(**changes)

    def run_args(self, **changes: float | _core.DType) -> _core.RunArgs:
        row = NUM_KV_HEADS * HEAD_DIM
        cache_strides = {"page_stride": 2 * PAGE_SIZE * row, "token_stride": row, "head_stride": HEAD_DIM}
        args: dict[str, int | float | _core.DType] = {
            "dtype": _core.DType.BFLOAT16,
            "num_pages": NUM_PAGES,
            "lse": 0x5000,
            "k_scale": 2.0,
            "v_scale": 3.0,
            "k_scale_ptr": 0,
            "v_scale_ptr": 0x6000,
        }
        for address, name in enumerate(("q", "k", "v", "out"), start=1):
            args[name] = address * 0x1000
        for name in ("q", "out"):
            args |= {f"{name}_token_stride": NUM_QO_HEADS * HEAD_DIM, f"{name}_head_stride": HEAD_DIM}
        for name in ("k", "v"):
            args |= {f"{name}_{stride}": value for stride, value in cache_strides.items()}
        return _core.RunArgs(**(args | changes))  # type: ignore[arg-type]


def expect_device_error(path: Path, machine: dict[str, int], message: str, device: int) -> None:
    FakeDriver(path, **machine)
    with pytest.raises(_core.DeviceError, match=message):
        _core.device_info(device)


@pytest.mark.parametrize(
    ("machine", "device", "message"),
    [
        ({"driver_version": 12080}, 0, "driver is too old: it supports CUDA 12.8; .*580 .CUDA 13.0."),
        ({"num_devices": 0}, 0, "sees no CUDA device"),
        ({"num_devices": 2}, 2, "device is 2; the NVIDIA driver sees 2 CUDA device"),
        ({"num_devices": 2}, -1, "device is -1; the NVIDIA driver sees 2 CUDA device"),
        ({"capability": 80}, 0, "device 0 is Fake GPU of compute capability 8.0; .*Hopper GPU .9.0."),
        ({"capability": 100}, 0, "device 0 is Fake GPU of compute capability 10.0; .*Hopper GPU .9.0."),
    ],
)
def test_a_machine_that_cannot(
    fake_driver: Path, elsewhere: ProcessPoolExecutor, machine: dict[str, int], device: int, message: str
) -> None:
    elsewhere.submit(expect_device_error, fake_driver, machine, message, device).result()


def check_device_info(path: Path) -> None:
    FakeDriver(path, driver_version=13010)
    info = _core.device_info(0)
    assert (info.name, info.num_sms, info.driver_version) == ("Fake GPU", 132, 13010)
    assert (info.capability_major, info.capability_minor) == (9, 0)


def check_driver_appears_later(path: Path) -> None:
    fake = FakeDriver(path, num_devices=0)
    with pytest.raises(_core.DeviceError):
        _core.device_info(0)
    fake.set("num_devices", 1)
    assert _core.device_info(0).num_sms == 132


def check_plan_is_one_copy_of_the_bytes_in_use(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    plan = _core.plan_batch(step.limits, step.shape, *step.spec)
    assert step.attention.plan_bytes() == plan
    assert ctypes.string_at(step.workspace, len(plan)) == plan
    assert fake.get("num_copies") == 1
    assert ctypes.c_uint64.in_dll(fake.library, "copied_bytes").value == len(plan)


def check_plan_waits_only_when_all_buffers_are_taken(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    for _ in range(4):
        step.plan()
    assert fake.get("num_waits") == 0
    step.plan()
    assert fake.get("num_waits") == 1


def check_failed_plan_changes_nothing(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    plan = step.attention.plan_bytes()
    for _ in range(5):  # once round the ring, were the buffers taken
        with pytest.raises(ValueError, match="kv_len"):
            step.plan(kv_len=-1)
    assert step.attention.plan_bytes() == plan
    assert (fake.get("num_copies"), fake.get("num_waits")) == (1, 0)
    step.plan()
    assert step.attention.plan_bytes() == plan


def check_failed_upload_leaves_no_plan(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    fake.set("record_result", 1)
    with pytest.raises(_core.DeviceError, match="cuEventRecord"):
        step.plan(kv_len=KV_LEN - 1)
    assert fake.get("num_copies") == 2  # the device has the new plan, or will
    step.refuses(re.escape("run() needs a plan"))
    with pytest.raises(ValueError, match="no plan"):
        step.attention.plan_bytes()
    fake.set("record_result", 0)
    step.plan()
    step.run()
    assert fake.get("num_launches") == 1


def check_captures_of_others_are_left_alone(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    for _ in range(5):
        step.plan()
    assert (fake.get("num_host_buffers"), fake.get("num_waits")) == (4, 1)
    del step
    assert fake.get("num_host_buffers") == 0
    assert fake.get("num_unsafe_calls") == 0
    assert fake.library.thread_capture_mode() == 0  # as it was


def check_code_is_loaded_before_any_launch(path: Path) -> None:
    fake = FakeDriver(path)
    Step()
    assert fake.get("num_loads") == 1


def check_waiting_destructor_lets_threads_go_on(path: Path) -> None:
    fake = FakeDriver(path, holds_waits=1)
    step = Step()
    step.plan()

    def finish_the_copy() -> None:
        while fake.get("num_waits") == 0:
            time.sleep(0.001)
        fake.set("holds_waits", 0)

    other = threading.Thread(target=finish_the_copy)
    other.start()
    del step
    fake.set("num_waits", 1)  # ends the thread in any case
    other.join()
    assert (fake.get("num_timeouts"), fake.get("num_host_buffers")) == (0, 0)


def check_nothing_is_freed_when_the_driver_is_gone(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    fake.set("is_gone", 1)
    del step
    assert (fake.get("num_host_buffers"), fake.get("num_events"), fake.get("num_waits")) == (4, 4, 0)


def check_capturing_stream(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    fake.set("is_capturing", 1)
    with pytest.raises(ValueError, match="stream is being captured"):
        step.plan()
    assert fake.get("num_copies") == 1
    step.attention.run(step.run_args(), 0)
    assert fake.get("num_launches") == 1


def check_run_before_plan(path: Path) -> None:
    FakeDriver(path)
    step = Step()
    with pytest.raises(ValueError, match=re.escape("run() needs a plan")):
        step.attention.run(step.run_args(), 0)
    with pytest.raises(ValueError, match="no plan"):
        step.attention.plan_bytes()


def check_run_is_one_launch(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    step.attention.run(step.run_args(), 0)
    assert (fake.get("num_launches"), fake.get("num_copies")) == (1, 1)
    config = (ctypes.c_uint * 7).in_dll(fake.library, "launch_config")
    assert list(config) == [NUM_CTAS, 1, 1, 384, 1, 1, 227 * 1024]
    params = PARAMS.unpack_from((ctypes.c_char * 832).in_dll(fake.library, "launch_params"))
    q_stride, cache_stride = NUM_QO_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    pages = (2 * PAGE_SIZE * cache_stride // 8, cache_stride // 8, HEAD_DIM // 8)  # in 16 bytes
    assert params[:5] == (step.workspace, NUM_PAGES, 4, 4, 1)  # boxes of 16 tokens; both kv heads together
    assert params[5:12] == (0x1000, 0x4000, q_stride, HEAD_DIM, q_stride, HEAD_DIM, 0x5000)
    assert params[12] == step.workspace + step.layout.partial_out_offset
    assert params[13] == step.workspace + step.layout.partial_lse_offset
    assert params[14:18] == (0, 0x6000, 2.0, 3.0)
    assert params[18:26] == (0x2000, *pages, 0x3000, *pages)


def check_tensor_maps(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    for _ in range(2):
        step.attention.run(step.run_args(), 0)
    assert fake.get("num_maps") == 5  # three of K and two of V, kept for the second run
    request = MapRequest.in_dll(fake.library, "map_request")
    row_bytes = NUM_KV_HEADS * HEAD_DIM * 2
    assert (request.data_type, request.rank, request.address) == (BFLOAT16_MAP, 5, 0x3000)
    assert list(request.dims) == [64, PAGE_SIZE, 2, NUM_KV_HEADS, NUM_PAGES]
    assert list(request.strides) == [row_bytes, 128, HEAD_DIM * 2, 2 * PAGE_SIZE * row_bytes]
    assert list(request.box) == [
        64,
        PAGE_SIZE,
        2,
        NUM_KV_HEADS,
        1,
    ]  # of V, the last encoded: both panels, both heads
    step.attention.run(step.run_args(v_page_stride=0x8000), 0)
    assert fake.get("num_maps") == 7
    assert MapRequest.in_dll(fake.library, "map_request").strides[3] == 0x10000


def check_gathered_pages_need_no_map(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step(page_size=12)
    step.plan()
    step.attention.run(step.run_args(), 0)
    assert (fake.get("num_maps"), fake.get("num_launches")) == (0, 1)


def check_run_allocates_nothing(path: Path) -> None:
    fake = FakeDriver(path)
    news = ctypes.c_int.in_dll(ctypes.CDLL(None), "num_news")
    step = Step()
    assert news.value > 0
    for page_size in (PAGE_SIZE, 12):
        step = Step(page_size)
        step.plan()
        args = step.run_args()
        before = news.value
        step.attention.run(args, 0)
        assert news.value == before
    assert fake.get("num_launches") == 2


def check_capture_bakes_arguments_for_later_plans(path: Path) -> None:
    """A plan of no query tokens reads neither q nor the cache; a replay after a later plan does."""
    fake = FakeDriver(path)
    step = Step()
    step.plan(qo_len=0)
    nothing = {"q": 0, "out": 0, "num_pages": 0}
    step.run(**nothing)
    fake.set("is_capturing", 1)
    step.refuses("q is null", q=0)
    step.refuses("out must start at a multiple of 16 bytes", out=0x1008)
    step.refuses("num_pages is 0; it must be positive in a capture", num_pages=0)
    step.refuses("k is null", k=0)
    assert fake.get("num_launches") == 1


def check_strides_of_later_plans(path: Path) -> None:
    """A plan of one token takes no token stride of q and out, but one of more tokens may follow."""
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    step.refuses("q token stride is 100 elements", q_token_stride=100)
    step.refuses("out token stride is 100 elements", out_token_stride=100)
    step = Step(max_total_qo_len=1)
    step.plan()
    step.run(q_token_stride=100, out_token_stride=100)
    assert fake.get("num_launches") == 1


def check_a_cache_without_pages(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan(kv_len=0)
    step.run(num_pages=0, k=0, v=0)
    assert (fake.get("num_launches"), fake.get("num_maps")) == (1, 0)
    step.plan()
    step.refuses("num_pages is 0; it must be positive, the plan has keys", num_pages=0, k=0, v=0)
    assert fake.get("num_launches") == 1


def check_cache_strides(path: Path) -> None:
    fake = FakeDriver(path)
    limit = 1 << 39  # elements: 2^40 bytes
    for page_size in (PAGE_SIZE, 12):
        step = Step(page_size)
        step.plan()
        for name, dimension in (("k", "page"), ("v", "token"), ("v", "head")):
            for stride in (-HEAD_DIM, limit, -(1 << 63)):
                message = f"{name} {dimension} stride is {stride} elements; .*negative.*below 2.40 bytes"
                step.refuses(message, **{f"{name}_{dimension}_stride": stride})
        step.run(num_pages=1, k_page_stride=-1)  # never taken
    assert fake.get("num_launches") == 2


def check_cache_spans(path: Path) -> None:
    """TMA takes any, a gather 2^32 - 1 times 16 bytes."""
    fake = FakeDriver(path)
    limit = 1 << 39  # elements: 2^40 bytes
    step = Step()
    step.plan()
    step.run(k_page_stride=limit - 8)
    step = Step(page_size=12)
    step.plan()
    rest = 11 * NUM_KV_HEADS * HEAD_DIM + (NUM_KV_HEADS - 1) * HEAD_DIM  # tokens and heads of the last page
    longest = ((1 << 32) - 2) * 8 - rest
    for name in "kv":
        message = f"{name} reaches over 64 GiB or more; .*pages of 12 tokens"
        other = "v" if name == "k" else "k"
        huge = {f"{name}_page_stride": limit - 8, f"{other}_page_stride": 0}
        step.refuses(message, num_pages=2, **{f"{name}_page_stride": longest + 8})
        step.refuses(message, num_pages=(1 << 31) - 1, **huge)
        step.run(num_pages=2, **{f"{name}_page_stride": longest})
    assert fake.get("num_launches") == 3


def check_expanded_caches(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    step.refuses("k head stride is 0; .* pages of 16 tokens, which TMA loads", k_head_stride=0)
    step.refuses("v page stride is 0; .* has to be copied", v_page_stride=0)
    step = Step(page_size=12)
    step.plan()
    step.run(k_head_stride=0, v_page_stride=0)
    assert fake.get("num_launches") == 1


def check_bad_run_arguments(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    nan, inf = float("nan"), float("inf")
    for changes, message in (
        ({"k_scale": 0.0}, "k_scale is 0; it must be positive and finite"),
        ({"k_scale": -1.0}, "k_scale is -1; it must be positive and finite"),
        ({"k_scale": nan}, "k_scale is nan; it must be positive and finite"),
        ({"k_scale": inf}, "k_scale is inf; it must be positive and finite"),
        ({"v_scale": nan}, "v_scale is nan; it must be finite"),
        ({"v_scale": -inf}, "v_scale is -inf; it must be finite"),
        ({"dtype": _core.DType.FLOAT16}, "is float16; the plan was made for bfloat16"),
        ({"q": 0x1008}, "q must start at a multiple of 16 bytes"),
        ({"out": 0}, "out is null"),
        ({"k": 0x2002}, "k must start at a multiple of 16 bytes"),
        ({"v_token_stride": 100}, "v token stride is 100 elements"),
        ({"q_head_stride": 129}, "q head stride is 129 elements"),
        ({"q_token_stride": 1 << 31}, "q token stride is 2147483648 elements; it must be an int32"),
        ({"out_head_stride": -(1 << 31) - 8}, "out head stride is -2147483656 elements; it must be an int32"),
        ({"num_pages": 1 << 31}, "num_pages is 2147483648"),
        ({"num_pages": -1}, "num_pages is -1"),
    ):
        step.refuses(message, **changes)
    assert fake.get("num_launches") == 0


def check_bad_construction(path: Path) -> None:
    FakeDriver(path)
    limits = _core.PlanLimits(4, 64, 1024, NUM_CTAS)
    shape = _core.AttentionShape(8, 2, HEAD_DIM, 16, _core.DType.BFLOAT16)
    for address in (0, 0x1040):
        with pytest.raises(ValueError, match="workspace must be device memory"):
            _core.DeviceAttention(0, limits, shape, address)
    float32 = _core.AttentionShape(8, 2, HEAD_DIM, 16, _core.DType.FLOAT32)
    with pytest.raises(ValueError, match="no kernel for float32 head_dim 128 tma; this build has: "):
        _core.DeviceAttention(0, limits, float32, 0x1000)


def check_kernel_of_another_build(path: Path) -> None:
    FakeDriver(path, kernel_param_bytes=824)
    with pytest.raises(_core.DeviceError, match="takes 824 bytes of parameters, the library passes 832"):
        Step()


@pytest.mark.parametrize(
    "check",
    [
        check_device_info,
        check_driver_appears_later,
        check_plan_is_one_copy_of_the_bytes_in_use,
        check_plan_waits_only_when_all_buffers_are_taken,
        check_failed_plan_changes_nothing,
        check_failed_upload_leaves_no_plan,
        check_captures_of_others_are_left_alone,
        check_code_is_loaded_before_any_launch,
        check_waiting_destructor_lets_threads_go_on,
        check_nothing_is_freed_when_the_driver_is_gone,
        check_capturing_stream,
        check_run_before_plan,
        check_run_is_one_launch,
        check_tensor_maps,
        check_gathered_pages_need_no_map,
        check_capture_bakes_arguments_for_later_plans,
        check_strides_of_later_plans,
        check_a_cache_without_pages,
        check_cache_strides,
        check_cache_spans,
        check_expanded_caches,
        check_bad_run_arguments,
        check_bad_construction,
        check_kernel_of_another_build,
    ],
)
def test_launcher(fake_driver: Path, elsewhere: ProcessPoolExecutor, check: Check) -> None:
    elsewhere.submit(check, fake_driver).result()


@pytest.mark.usefixtures("counted_news")
def test_run_allocates_nothing(fake_driver: Path, elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_run_allocates_nothing, fake_driver).result()
