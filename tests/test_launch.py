"""The launcher against a made-up driver (fake_driver.c): errors of machines we do not have, and what a plan() and a
run() ask of a driver. No GPU is needed, and none is touched where there is one."""

import ctypes
import math
import re
import struct
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from fake_driver import (
    BFLOAT16_MAP,
    BYTES_MAP,
    HEAD_DIM,
    KV_LEN,
    NUM_CTAS,
    NUM_KV_HEADS,
    NUM_PAGES,
    NUM_QO_HEADS,
    PAGE_SIZE,
    PARAMS,
    SCALE_STRIDES,
    SCALE_STRIDES_OFFSET,
    FakeDriver,
    MapRequest,
    Step,
)
from onewave import _core
from onewave.plan_format import Plan

Check = Callable[[Path], None]


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
    assert fake.get("num_loads") == 3  # attention's with masks and without, and what updates lengths


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
    params = PARAMS.unpack_from((ctypes.c_char * 896).in_dll(fake.library, "launch_params"))
    q_stride, cache_stride = NUM_QO_HEADS * HEAD_DIM, NUM_KV_HEADS * HEAD_DIM
    pages = (2 * PAGE_SIZE * cache_stride // 8, cache_stride // 8, HEAD_DIM // 8)  # in 16 bytes
    # Boxes of 16 tokens; both kv heads together; bf16.
    assert params[:7] == (step.workspace, NUM_PAGES, 64, 4, 4, 1, 1)
    assert params[7:14] == (0x1000, 0x4000, q_stride, HEAD_DIM, q_stride, HEAD_DIM, 0x5000)
    assert params[14] == step.workspace + step.layout.partial_out_offset
    assert params[15] == step.workspace + step.layout.partial_lse_offset
    assert params[16:24] == (0, 0, 0x6000, 0.0, 2.0, 3.0, 1.0, 0)
    assert params[24:33] == (0x2000, *pages, 0x3000, *pages, 0)


def check_a_scale_in_place_of_the_plans(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    step.run(sm_scale=0.5, sm_scale_ptr=0x7000)
    params = PARAMS.unpack_from((ctypes.c_char * 896).in_dll(fake.library, "launch_params"))
    assert params[16] == 0x7000
    assert params[19] == pytest.approx(0.5 * math.log2(math.e))
    for scale in (-1.0, math.inf, math.nan):
        step.refuses("sm_scale is .*; it must be positive and finite, or 0 for the plan's", sm_scale=scale)


def check_programmatic_dependent_launch(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    for enable_pdl in (False, True, False):
        step.run(enable_pdl=enable_pdl)
        assert fake.get("launch_overlaps") == enable_pdl


def check_lengths_are_updated_by_one_launch(path: Path) -> None:
    """Behind the copy of a plan that has bounds, and whenever it is asked for: a graph may have it for later plans."""
    fake = FakeDriver(path)
    step = Step()
    with pytest.raises(ValueError, match=r"update_kv_lens\(\) needs a plan; call plan\(\) first"):
        step.attention.update_kv_lens(0)
    step.plan()
    assert (fake.get("num_copies"), fake.get("num_launches")) == (1, 0)
    step.attention.update_kv_lens(0)
    step.attention.plan(*step.spec, 0, actual_kv_len_arr=0xABC0)
    assert (fake.get("num_copies"), fake.get("num_launches")) == (2, 2)
    config = (ctypes.c_uint * 7).in_dll(fake.library, "launch_config")
    assert list(config) == [16, 1, 1, 256, 1, 1, 0] and fake.get("launch_overlaps") == 0
    assert ctypes.c_uint64.in_dll(fake.library, "launch_params").value == step.workspace
    plan = Plan(step.attention.plan_bytes())
    assert plan.header["actual_kv_lens"] == 0xABC0 and len(plan.item_bounds) == len(plan.items) > 0


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


def check_cache_of_fp8(path: Path) -> None:
    """Maps of bytes, in boxes of what one producer warp widens, and the strides of scales."""
    fake = FakeDriver(path)
    fp8 = _core.DType.FLOAT8_E4M3
    step = Step(page_size=64, kv_dtype=fp8)
    step.plan()
    args = step.run_args(kv_dtype=fp8)
    by_page_and_head = (2, 1, 1, 32)
    args.set_scales(0.0, 1.0, 1.0, 0, 0x7000, 0x8000, *by_page_and_head, 0, 0, 1, 1)
    step.attention.run(args, 0)
    launched = (ctypes.c_char * 896).in_dll(fake.library, "launch_params")
    assert 1 << PARAMS.unpack_from(launched)[3] == 32  # tokens of a box: a warp's rows
    inverse = -(-(1 << 31) // 32)
    assert SCALE_STRIDES.unpack_from(launched, SCALE_STRIDES_OFFSET) == (2, 1, 1, inverse, 0, 0, 1, 0, 0)
    request = MapRequest.in_dll(fake.library, "map_request")
    row_bytes = NUM_KV_HEADS * HEAD_DIM
    assert (request.data_type, request.rank) == (BYTES_MAP, 5)
    assert list(request.dims) == [128, 64, 1, NUM_KV_HEADS, NUM_PAGES]
    assert list(request.strides) == [row_bytes, 128, HEAD_DIM, 2 * PAGE_SIZE * row_bytes]
    assert list(request.box) == [128, 64, 1, NUM_KV_HEADS, 1]  # of V and both heads


def check_scales_that_are_refused(path: Path) -> None:
    fake = FakeDriver(path)
    fp8 = _core.DType.FLOAT8_E4M3
    step = Step(kv_dtype=fp8)
    step.plan()
    step.refuses("kv_dtype is bfloat16; the plan was made for float8_e4m3fn")
    for strides, message in (
        ((-2, 1, 1, 16), "k_scales has a stride of -2; it must not be negative"),
        ((2, 1 << 31, 1, 16), "strides of groups and heads of 2147483648 and 1; they must each be an int32"),
        ((2, 1, 1, 3), "k_scales has groups of 3 tokens; they must divide pages of 16"),
    ):
        args = step.run_args(kv_dtype=fp8)
        args.set_scales(0.0, 1.0, 1.0, 0, 0x7000, 0, *strides)
        with pytest.raises(ValueError, match=message):
            step.attention.run(args, 0)
    for step, message in (
        (Step(), "v_scales has more than one factor; it must have one where k and v are bfloat16"),
        (
            Step(kv_dtype=fp8, head_dim=256),
            "groups of tokens; head_dim must be at most 128 for them, not 256",
        ),
        (Step(kv_dtype=fp8, page_size=1 << 16), "pages must have at most 32768 tokens for them, not 65536"),
    ):
        step.plan()
        args = step.run_args(kv_dtype=step.shape.kv_dtype)
        args.set_scales(0.0, 1.0, 1.0, 0, 0, 0x7000, 0, 0, 0, 1, 2, 1, 1, 16)
        with pytest.raises(ValueError, match=message):
            step.attention.run(args, 0)
    assert fake.get("num_launches") == 0


def check_queries_of_fp8(path: Path) -> None:
    """The type of their output, and their factors by kv head."""
    fake = FakeDriver(path)
    fp8 = _core.DType.FLOAT8_E4M3
    for out_dtype, is_bf16 in ((None, 1), (_core.DType.BFLOAT16, 1), (_core.DType.FLOAT16, 0)):
        step = Step(dtype=fp8, out_dtype=out_dtype)
        step.plan()
        args = step.run_args(dtype=fp8, out_dtype=step.shape.out_dtype)
        args.set_scales(0.0, 1.0, 1.0, 0, 0, 0, q_scale_ptr=0x9000, q_scale_head_stride=3)
        step.attention.run(args, 0)
        launched = (ctypes.c_char * 896).in_dll(fake.library, "launch_params")
        params = PARAMS.unpack_from(launched)
        assert (params[6], params[32]) == (is_bf16, 0x9000)
        assert SCALE_STRIDES.unpack_from(launched, SCALE_STRIDES_OFFSET)[-1] == 3
        step.run(dtype=fp8, out_dtype=step.shape.out_dtype)
        assert PARAMS.unpack_from(launched)[32] == 0
    step = Step(kv_dtype=_core.DType.BFLOAT16)
    step.plan()
    step.run()
    assert PARAMS.unpack_from(launched)[6] == 1


def check_queries_of_fp8_that_are_refused(path: Path) -> None:
    fake = FakeDriver(path)
    fp8, float16, float32 = _core.DType.FLOAT8_E4M3, _core.DType.FLOAT16, _core.DType.FLOAT32
    for options, message in (
        (
            {"out_dtype": float32},
            "out_dtype is float32; it must be bfloat16 or float16 where q is float8_e4m3fn",
        ),
        ({"out_dtype": fp8}, "out_dtype is float8_e4m3fn; it must be bfloat16 or float16 where"),
        (
            {"kv_dtype": _core.DType.BFLOAT16},
            "no kernel for float8_e4m3fn with kv bfloat16 head_dim 128 tma; the nearest is bfloat16 head_dim 128 tma",
        ),
        (
            {"head_dim": 160},
            "for float8_e4m3fn head_dim 160 tma; the nearest is float8_e4m3fn head_dim 128 tma",
        ),
        (
            {"dtype": float16, "out_dtype": _core.DType.BFLOAT16},
            "out_dtype is bfloat16; it must be that of q, float16",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Step(**({"dtype": fp8} | options))
    wide = Step()
    wide.plan()
    wide.refuses("dtype of q is float8_e4m3fn; the plan was made for bfloat16", dtype=fp8)
    step = Step(dtype=fp8)
    step.plan()
    step.refuses("dtype of q is bfloat16; the plan was made for float8_e4m3fn")
    step.refuses(
        "kv_dtype is bfloat16; the plan was made for float8", dtype=fp8, kv_dtype=_core.DType.BFLOAT16
    )
    step.refuses("out_dtype is float16; the plan was made for bfloat16", dtype=fp8, out_dtype=float16)
    # In elements of their own sizes: 16 bytes of each.
    step.refuses("q head stride is 136 elements; it must be a multiple of 16 b", dtype=fp8, q_head_stride=136)
    step.refuses("out head stride is 132 elements; it must be a mult", dtype=fp8, out_head_stride=132)
    assert fake.get("num_launches") == 0
    step.run(dtype=fp8, q_head_stride=144, out_head_stride=136)
    for a_step, dtype, scales, message in (
        (
            step,
            fp8,
            {"k_scale_ptr": 0x7000, "k_scale_page_stride": 2},
            "k_scales are of groups of tokens; q must be of 16 bits",
        ),
        (
            step,
            fp8,
            {"v_scale_ptr": 0x7000, "v_scale_group_stride": 2},
            "v_scales are of groups .*not float8_e4m3fn",
        ),
        (
            step,
            fp8,
            {"q_scale_ptr": 0x7000, "q_scale_head_stride": -1},
            "q_scale_head_stride is -1; it must not be neg",
        ),
        (
            step,
            fp8,
            {"q_scale_ptr": 0x7000, "q_scale_head_stride": 1 << 31},
            "is 2147483648; .* must be an int32",
        ),
        (
            wide,
            _core.DType.BFLOAT16,
            {"q_scale_ptr": 0x7000},
            "q_scales are given; they must be null where q is bfloat16",
        ),
    ):
        args = a_step.run_args(dtype=dtype)
        none = {"k_scale_ptr": 0, "v_scale_ptr": 0}
        args.set_scales(sm_scale=0.0, k_scale=1.0, v_scale=1.0, sm_scale_ptr=0, **(none | scales))
        with pytest.raises(ValueError, match=message):
            a_step.attention.run(args, 0)
    args = step.run_args(dtype=fp8)
    args.set_scales(0.0, 1.0, 1.0, 0, 0x7000, 0x8000, k_scale_head_stride=1, v_scale_head_stride=2)
    step.attention.run(args, 0)
    assert fake.get("num_launches") == 2


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


def check_bad_construction(path: Path) -> None:
    FakeDriver(path)
    limits = _core.PlanLimits(4, 64, 1024, NUM_CTAS)
    shape = _core.AttentionShape(8, 2, HEAD_DIM, HEAD_DIM, 16, _core.DType.BFLOAT16)
    for address in (0, 0x1040):
        with pytest.raises(ValueError, match="workspace must be device memory"):
            _core.DeviceAttention(0, limits, shape, address)
    float32 = _core.AttentionShape(8, 2, HEAD_DIM, HEAD_DIM, 16, _core.DType.FLOAT32)
    nearest = "no kernel for float32 head_dim 128 tma; the nearest is bfloat16 head_dim 128 tma"
    with pytest.raises(ValueError, match=nearest):
        _core.DeviceAttention(0, limits, float32, 0x1000)
    wide = _core.AttentionShape(8, 2, 224, 128, 3, _core.DType.FLOAT16)
    with pytest.raises(
        ValueError,
        match="float16 head_dim 224 and 128 gather; the nearest is float16 head_dim 192 and 128 gather",
    ):
        _core.DeviceAttention(0, limits, wide, 0x1000)


def check_windows_are_as_many_as_the_limits_say(path: Path) -> None:
    FakeDriver(path)
    step = Step()
    for window_lefts in ((), (-1, -1)):
        with pytest.raises(ValueError, match=f"window_lefts has {len(window_lefts)} windows; it must have 1"):
            step.attention.plan(*step.spec, 0, window_lefts=window_lefts)


def check_a_profile_takes_its_kernel(path: Path) -> None:
    fake = FakeDriver(path)
    step = Step()
    step.plan()
    args = step.run_args()
    args.set_profile(0x70000, _core.profile_bytes(NUM_CTAS, 5) + 100)
    with pytest.raises(ValueError, match=r"profile is given; call load_profiler\(\) first"):
        step.attention.run(args, 0)
    fake.set("profiled_param_bytes", 952)
    with pytest.raises(_core.DeviceError, match="takes 952 bytes of parameters, the library passes 960"):
        step.attention.load_profiler()
    fake.set("profiled_param_bytes", 960)
    step.attention.load_profiler()
    num_loads = fake.get("num_loads")
    step.attention.load_profiler()
    assert fake.get("num_loads") == num_loads
    names = []
    for _ in range(2):
        step.attention.run(args, 0)
        names.append(ctypes.c_char_p.in_dll(fake.library, "launch_name").value)
        launched = (ctypes.c_char * 960).in_dll(fake.library, "launch_params")
        assert struct.unpack_from("<Qi", launched, 896) == (0x70000, 5)
        assert PARAMS.unpack_from(launched)[7] == 0x1000
        args.set_options(0x9000, False, 0)  # sinks, of the masked kernel
    step.run()
    names.append(ctypes.c_char_p.in_dll(fake.library, "launch_name").value)
    assert names == [b"onewave_attention_profiled"] * 2 + [b"onewave_attention"]
    for num_bytes, address, message in (
        (
            _core.profile_bytes(NUM_CTAS, 1) - 1,
            0x70000,
            "num_profile_bytes is [0-9]+; it must be at least [0-9]+ for 8",
        ),
        (_core.profile_bytes(NUM_CTAS, 1), 0x70008, "profile must start at a multiple of 16 bytes"),
    ):
        args.set_profile(address, num_bytes)
        with pytest.raises(ValueError, match=message):
            step.attention.run(args, 0)


def check_no_profiler_for_fp16(path: Path) -> None:
    FakeDriver(path)
    step = Step(dtype=_core.DType.FLOAT16)
    with pytest.raises(
        ValueError, match="float16 head_dim 128 tma with the profiler; the nearest is bfloat16 head_dim"
    ):
        step.attention.load_profiler()


def check_kernel_of_another_build(path: Path) -> None:
    FakeDriver(path, kernel_param_bytes=888)
    with pytest.raises(_core.DeviceError, match="takes 888 bytes of parameters, the library passes 896"):
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
        check_a_scale_in_place_of_the_plans,
        check_programmatic_dependent_launch,
        check_lengths_are_updated_by_one_launch,
        check_tensor_maps,
        check_cache_of_fp8,
        check_scales_that_are_refused,
        check_queries_of_fp8,
        check_queries_of_fp8_that_are_refused,
        check_gathered_pages_need_no_map,
        check_bad_construction,
        check_windows_are_as_many_as_the_limits_say,
        check_a_profile_takes_its_kernel,
        check_no_profiler_for_fp16,
        check_kernel_of_another_build,
    ],
)
def test_launcher(fake_driver: Path, elsewhere: ProcessPoolExecutor, check: Check) -> None:
    elsewhere.submit(check, fake_driver).result()


@pytest.mark.usefixtures("counted_news")
def test_run_allocates_nothing(fake_driver: Path, elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_run_allocates_nothing, fake_driver).result()
