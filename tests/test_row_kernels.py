"""The launches of append_paged_kv_cache() and merge_states() against a made-up driver (fake_driver.c): what they ask of
it, and what they refuse."""

import ctypes
import struct
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fake_driver import FakeDriver
from onewave import _core

Check = Callable[[Path], None]
# struct AppendArgs and MergeArgs of onewave/row_kernels.h.
HEAD_SCALES = "Qqf4x"
APPEND = struct.Struct(f"<6iQ2qQ2qQQ2iQ3qQ3q2iQQ{HEAD_SCALES}{HEAD_SCALES}")
STATES = "Q3qQ3qi4x"
MERGE = struct.Struct(f"<4i{STATES}{STATES}Q2qQ2qQ")
FLOAT32, BFLOAT16, FLOAT8_E4M3 = 0, 2, 3  # DType

NUM_ROWS, NUM_KV_HEADS, HEAD_DIM, PAGE_SIZE = 9, 2, 128, 16
HEAD_STRIDES = (NUM_KV_HEADS * HEAD_DIM, HEAD_DIM)
PAGE_STRIDES = (PAGE_SIZE * NUM_KV_HEADS * HEAD_DIM, *HEAD_STRIDES)


def append_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "device": 0,
        "dtype": _core.DType.BFLOAT16,
        "kv_dtype": _core.DType.BFLOAT16,
        "num_kv_heads": NUM_KV_HEADS,
        "head_dim_qk": HEAD_DIM,
        "head_dim_vo": HEAD_DIM,
        "page_size": PAGE_SIZE,
        "append_key": _core.RowTensor(0x1000, *HEAD_STRIDES),
        "append_value": _core.RowTensor(0x2000, *HEAD_STRIDES),
        "batch_indices": 0x3000,
        "positions": 0x4000,
        "num_rows": NUM_ROWS,
        "batch_size": 3,
        "k": _core.PagedTensor(0x5000, *PAGE_STRIDES),
        "v": _core.PagedTensor(0x6000, *PAGE_STRIDES),
        "num_pages": 40,
        "num_kv_indices": 30,
        "kv_indices": 0x7000,
        "kv_indptr": 0x8000,
        "k_scale": _core.HeadScales(),
        "v_scale": _core.HeadScales(),
        "stream": 0,
    } | changes


def states(num_states: int = 3, **changes: int) -> _core.StateSet:
    strides = {
        "v_token_stride": num_states * 256,
        "v_state_stride": 256,
        "v_head_stride": 128,
        "s_token_stride": num_states * 2,
        "s_state_stride": 2,
        "s_head_stride": 1,
    }
    return _core.StateSet(**({"v": 0x1000, "s": 0x2004, "num_states": num_states} | strides | changes))


def merge_arguments(**changes: Any) -> dict[str, Any]:
    return {
        "device": 0,
        "dtype": _core.DType.BFLOAT16,
        "num_tokens": 9,
        "num_heads": 2,
        "head_dim": 128,
        "first": states(),
        "second": _core.StateSet(0, 0, 0, 0, 0, 0, 0, 0, 0),
        "out": _core.RowTensor(0x3000, 256, 128),
        "lse": 0x4004,
        "lse_token_stride": 2,
        "lse_head_stride": 1,
        "mask": 0,
        "stream": 0,
    } | changes


def append(**changes: Any) -> None:
    _core.append_paged_kv_cache(**append_arguments(**changes))


def merge(**changes: Any) -> None:
    _core.merge_states(**merge_arguments(**changes))


def launched(fake: FakeDriver, params: struct.Struct) -> tuple[list[int], tuple[Any, ...]]:
    """Grid, block and shared bytes of the last launch, and its parameters."""
    config = (ctypes.c_uint * 7).in_dll(fake.library, "launch_config")
    return list(config), params.unpack_from((ctypes.c_char * 896).in_dll(fake.library, "launch_params"))


def launched_name(fake: FakeDriver) -> bytes | None:
    return ctypes.c_char_p.in_dll(fake.library, "launch_name").value


def check_append_is_one_launch(path: Path) -> None:
    fake = FakeDriver(path)
    append()
    # 9 rows of 2 heads of 16 chunks: 288 threads.
    config, params = launched(fake, APPEND)
    assert config == [2, 1, 1, 256, 1, 1, 0]
    assert params == (
        *(BFLOAT16, BFLOAT16, NUM_KV_HEADS, HEAD_DIM, HEAD_DIM, PAGE_SIZE),
        *(0x1000, *HEAD_STRIDES, 0x2000, *HEAD_STRIDES),
        *(0x3000, 0x4000, NUM_ROWS, 3),
        *(0x5000, *PAGE_STRIDES, 0x6000, *PAGE_STRIDES),
        *(40, 30, 0x7000, 0x8000),
        *(0, 0, 1.0, 0, 0, 1.0),
    )
    assert (fake.get("num_launches"), launched_name(fake)) == (1, b"onewave_append")
    append(head_dim_vo=2 * HEAD_DIM)  # of the longer rows, twice as many chunks
    assert launched(fake, APPEND)[0] == [3, 1, 1, 256, 1, 1, 0]


def check_an_append_to_fp8(path: Path) -> None:
    """A chunk of the cache is one thread's: 9 rows of 2 heads of 8 chunks."""
    fake = FakeDriver(path)
    fp8, bfloat16, float32 = _core.DType.FLOAT8_E4M3, _core.DType.BFLOAT16, _core.DType.FLOAT32
    scales = {"k_scale": _core.HeadScales(0x9004, 3), "v_scale": _core.HeadScales(scale=0.25)}
    for dtype, code in ((bfloat16, BFLOAT16), (float32, FLOAT32)):
        append(dtype=dtype, kv_dtype=fp8, **scales)
        config, params = launched(fake, APPEND)
        assert (config, launched_name(fake)) == ([1, 1, 1, 256, 1, 1, 0], b"onewave_append_fp8")
        assert (params[:2], params[-6:]) == ((code, FLOAT8_E4M3), (0x9004, 3, 1.0, 0, 0, 0.25))
    append(dtype=fp8, kv_dtype=fp8, num_rows=17)
    config, params = launched(fake, APPEND)
    assert (config, launched_name(fake)) == ([2, 1, 1, 256, 1, 1, 0], b"onewave_append")
    assert params[:2] == (FLOAT8_E4M3, FLOAT8_E4M3)
    assert fake.get("num_launches") == 3


def check_merge_is_one_launch(path: Path) -> None:
    fake = FakeDriver(path)
    second = states(1, v=0x8000, s=0x9000)
    merge(second=second, mask=0x5001)
    config, params = launched(fake, MERGE)
    assert config == [2, 1, 1, 16, 16, 1, 0]  # 18 rows of 16 chunks: 16 rows a CTA
    assert params == (
        *(BFLOAT16, 9, 2, 128),
        *(0x1000, 768, 256, 128, 0x2004, 6, 2, 1, 3),
        *(0x8000, 256, 256, 128, 0x9000, 2, 2, 1, 1),
        *(0x3000, 256, 128, 0x4004, 2, 1, 0x5001),
    )
    assert fake.get("num_launches") == 1


def check_lanes_of_a_row(path: Path) -> None:
    """A power of two of one warp, with a chunk each where that is enough."""
    fake = FakeDriver(path)
    for head_dim, dtype, lanes in (
        (8, "BFLOAT16", 1),
        (64, "FLOAT16", 8),
        (80, "BFLOAT16", 16),
        (128, "FLOAT32", 32),
        (512, "BFLOAT16", 32),
    ):
        merge(head_dim=head_dim, dtype=_core.DType[dtype], num_tokens=1000)
        config, _ = launched(fake, MERGE)
        assert config == [-(-2000 * lanes // 256), 1, 1, lanes, 256 // lanes, 1, 0]


def check_nothing_to_do_is_no_launch(path: Path) -> None:
    fake = FakeDriver(path)
    nothing = _core.RowTensor(0, 0, 0)
    append(num_rows=0, append_key=nothing, append_value=nothing, batch_indices=0, positions=0)
    merge(num_tokens=0, first=states(v=0, s=0), out=nothing, lse=0)
    assert (fake.get("num_launches"), fake.get("num_loads")) == (0, 0)


def check_empty_parts(path: Path) -> None:
    """No requests and no pages: every row is skipped. No states: every row is 0."""
    fake = FakeDriver(path)
    nowhere = _core.PagedTensor(0, 0, 0, 0)
    append(batch_size=0, num_kv_indices=0, kv_indices=0, num_pages=0, k=nowhere, v=nowhere)
    merge(first=states(0, v=0, s=0))
    assert fake.get("num_launches") == 2


def check_first_calls_disturb_no_capture(path: Path) -> None:
    """Nor do they need one that comes before it: code is loaded in relaxed mode, once."""
    fake = FakeDriver(path, is_capturing=1)
    for _ in range(3):
        append()
        merge()
    assert (fake.get("num_loads"), fake.get("num_launches")) == (2, 6)
    assert (fake.get("num_unsafe_calls"), fake.library.thread_capture_mode()) == (0, 0)


def check_each_device_loads_its_own(path: Path) -> None:
    fake = FakeDriver(path, num_devices=2)
    for device in (0, 1, 0, 1):
        append(device=device)
    assert (fake.get("num_loads"), fake.get("num_launches")) == (2, 4)
    with pytest.raises(_core.DeviceError, match="device is 2"):
        append(device=2)


def check_a_device_that_cannot(path: Path) -> None:
    fake = FakeDriver(path, capability=100)
    for call in (append, merge):
        with pytest.raises(_core.DeviceError, match="needs a Hopper GPU"):
            call()
    fake.set("capability", 90)
    append()
    assert fake.get("num_launches") == 1


def check_kernels_of_another_build(path: Path) -> None:
    FakeDriver(path, append_param_bytes=184, merge_param_bytes=224)
    with pytest.raises(
        _core.DeviceError, match="append takes 184 bytes of parameters, the library passes 232"
    ):
        append()
    with pytest.raises(_core.DeviceError, match="merge_states takes 224 bytes of .* passes 216"):
        merge()


def check_later_calls_allocate_nothing(path: Path) -> None:
    FakeDriver(path)
    news = ctypes.c_int.in_dll(ctypes.CDLL(None), "num_news")
    calls = ((_core.append_paged_kv_cache, append_arguments()), (_core.merge_states, merge_arguments()))
    for function, arguments in calls:
        function(**arguments)
        before = news.value
        function(**arguments)
        assert news.value == before > 0


def check_strides_that_are_never_taken(path: Path) -> None:
    fake = FakeDriver(path)
    odd = _core.RowTensor(0x1000, 7, 7)
    odd_cache = _core.PagedTensor(0x5000, 7, 7, 7)
    one = {"num_kv_heads": 1, "num_rows": 1, "page_size": 1, "num_pages": 1}
    append(**one, append_key=odd, append_value=odd, k=odd_cache, v=odd_cache)
    odd_states = states(1, v_token_stride=7, v_state_stride=7, v_head_stride=7)
    merge(num_tokens=1, num_heads=1, first=odd_states, out=_core.RowTensor(0x3000, 7, 7))
    assert fake.get("num_launches") == 2


def check_bad_appends(path: Path) -> None:
    fake = FakeDriver(path)
    fp8: dict[str, Any] = {"kv_dtype": _core.DType.FLOAT8_E4M3}
    row = NUM_KV_HEADS * HEAD_DIM
    for changes, message in (
        ({"head_dim_qk": 0}, "head_dim_qk is 0; it must be at least 1"),
        ({"head_dim_vo": 100}, "head_dim_vo is 100 elements of bfloat16; it must be a multiple of 16 bytes"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0; it must be at least 1"),
        ({"page_size": 0}, "page_size is 0; it must be at least 1"),
        ({"num_rows": -1}, "num_rows is -1; it must be at least 0"),
        ({"batch_size": -1}, "batch_size is -1"),
        ({"num_pages": -1}, "num_pages is -1"),
        ({"num_kv_indices": -1}, "num_kv_indices is -1"),
        ({"num_rows": 1 << 30}, "16-byte chunks of append_key are .*; they must be at most"),
        ({"append_key": _core.RowTensor(0, row, HEAD_DIM)}, "append_key is null; it must be device memory"),
        ({"append_key": _core.RowTensor(0x1008, row, HEAD_DIM)}, "append_key must start at a multiple of 16"),
        (
            {"append_value": _core.RowTensor(0x1000, 100, HEAD_DIM)},
            "append_value token stride is 100 elements",
        ),
        ({"append_value": _core.RowTensor(0x1000, row, 129)}, "append_value head stride is 129 elements"),
        ({"batch_indices": 0}, "batch_indices is null"),
        ({"positions": 0}, "positions is null"),
        ({"kv_indptr": 0}, "kv_indptr is null"),
        ({"kv_indices": 0}, "kv_indices is null"),
        ({"k": _core.PagedTensor(0, *PAGE_STRIDES)}, "k is null"),
        ({"k": _core.PagedTensor(0x5000, 100, row, HEAD_DIM)}, "k page stride is 100 elements"),
        ({"v": _core.PagedTensor(0x5000, 4096, 100, HEAD_DIM)}, "v token stride is 100 elements"),
        ({"v": _core.PagedTensor(0x5000, 4096, row, 100)}, "v head stride is 100 elements"),
        ({"kv_dtype": _core.DType.FLOAT16}, "kv_dtype is float16; .* bfloat16, or float8_e4m3fn"),
        ({"dtype": _core.DType.FLOAT8_E4M3}, "kv_dtype is bfloat16; .* new rows, float8_e4m3fn"),
        (
            {"k_scale": _core.HeadScales(scale=0.5)},
            "k_scale is given; it must not be where dtype is kv_dtype, bfloat16",
        ),
        (
            {"v_scale": _core.HeadScales(0x9000)},
            "v_scale is given; it must not be where dtype is kv_dtype, bfloat16",
        ),
        (
            fp8 | {"head_dim_qk": 24},
            "head_dim_qk is 24 elements of float8_e4m3fn; it must be a multiple of 16",
        ),
        (fp8 | {"k": _core.PagedTensor(0x5000, 4096, row, 136)}, "k head stride is 136 elements"),
        (
            fp8 | {"k_scale": _core.HeadScales(scale=-1)},
            "k_scale is -1; it and its reciprocal must be positive",
        ),
        (fp8 | {"v_scale": _core.HeadScales(scale=1e-39)}, "v_scale is .*; it and its reciprocal must be"),
    ):
        with pytest.raises(ValueError, match=message):
            append(**changes)
    assert fake.get("num_launches") == 0


def check_bad_merges(path: Path) -> None:
    fake = FakeDriver(path)
    for changes, message in (
        ({"head_dim": 4}, "head_dim is 4 elements of bfloat16; it must be a multiple of 16 bytes"),
        ({"num_heads": 0}, "num_heads is 0; it must be at least 1"),
        ({"num_tokens": -1}, "num_tokens is -1; it must be at least 0"),
        ({"num_tokens": 1 << 30, "num_heads": 1 << 10}, "rows of v are .*; they must be at most"),
        ({"first": states(-1)}, "num_states is -1; it must be at least 0"),
        ({"first": states(v=0)}, "v is null"),
        ({"second": states(v=0x1008)}, "v must start at a multiple of 16 bytes"),
        ({"first": states(v_token_stride=100)}, "v token stride is 100 elements"),
        ({"second": states(v_state_stride=100)}, "v state stride is 100 elements"),
        ({"first": states(v_head_stride=100)}, "v head stride is 100 elements"),
        ({"second": states(s=0)}, "s is null"),
        ({"out": _core.RowTensor(0x3008, 256, 128)}, "out must start at a multiple of 16 bytes"),
        ({"out": _core.RowTensor(0x3000, 100, 128)}, "out token stride is 100 elements"),
        ({"lse": 0}, "lse is null"),
        ({"dtype": _core.DType.FLOAT8_E4M3}, "dtype of v and out is float8_e4m3fn"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(**changes)
    assert fake.get("num_launches") == 0


@pytest.mark.parametrize(
    "check",
    [
        check_append_is_one_launch,
        check_an_append_to_fp8,
        check_merge_is_one_launch,
        check_lanes_of_a_row,
        check_nothing_to_do_is_no_launch,
        check_empty_parts,
        check_first_calls_disturb_no_capture,
        check_each_device_loads_its_own,
        check_a_device_that_cannot,
        check_kernels_of_another_build,
        check_strides_that_are_never_taken,
        check_bad_appends,
        check_bad_merges,
    ],
)
def test_row_kernels(fake_driver: Path, elsewhere: ProcessPoolExecutor, check: Check) -> None:
    elsewhere.submit(check, fake_driver).result()


@pytest.mark.usefixtures("counted_news")
def test_later_calls_allocate_nothing(fake_driver: Path, elsewhere: ProcessPoolExecutor) -> None:
    elsewhere.submit(check_later_calls_allocate_nothing, fake_driver).result()
