"""Families of workloads that differ in one number: what a page's curves are drawn from. Their names have a slash, so
that no pattern without one means them."""

from onewave.bench.workload import Request, Workload

SCALING = "scaling/"
# The same in small, for a machine without a GPU.
SMOKE_SCALING = "smoke/"

BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DECODE_LENS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
PREFILL_LENS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
PAGE_SIZES = (1, 8, 16, 64)
CHUNK_LENS = (256, 512, 1024, 2048, 4096, 8192)
CACHED_LEN = 8192  # of the decodes and of the request whose chunk it is


def _decodes(count: int, kv_len: int) -> tuple[Request, ...]:
    return (Request(kv_len, 1),) * count


def _prompt(length: int) -> tuple[Request, ...]:
    return (Request(length, length),)


def _chunk(num_decodes: int, cached_len: int, chunk_len: int) -> tuple[Request, ...]:
    """The chunk's own keys come after the cached ones."""
    return (*_decodes(num_decodes, cached_len), Request(cached_len + chunk_len, chunk_len))


def scaling_workloads() -> list[Workload]:
    return [
        *(Workload(f"{SCALING}batch/decode_b{count}_8k", _decodes(count, 8192)) for count in BATCH_SIZES),
        *(Workload(f"{SCALING}length/decode_b16_{kv_len}", _decodes(16, kv_len)) for kv_len in DECODE_LENS),
        *(Workload(f"{SCALING}length/prefill_{length}", _prompt(length)) for length in PREFILL_LENS),
        *(
            Workload(f"{SCALING}page/{name}_p{page_size}", requests, page_size=page_size)
            for name, requests in (("decode_b64_8k", _decodes(64, 8192)), ("prefill_8k", _prompt(8192)))
            for page_size in PAGE_SIZES
        ),
        *(
            Workload(f"{SCALING}chunk/decode_b64_8k_chunk{chunk_len}", _chunk(64, CACHED_LEN, chunk_len))
            for chunk_len in CHUNK_LENS
        ),
    ]


def smoke_scaling_workloads() -> list[Workload]:
    def small(name: str, requests: tuple[Request, ...], page_size: int = 16) -> Workload:
        return Workload(
            f"{SMOKE_SCALING}{name}",
            requests,
            num_qo_heads=8,
            num_kv_heads=2,
            head_dim=64,
            page_size=page_size,
        )

    return [
        *(small(f"batch/decode_b{count}_256", _decodes(count, 256)) for count in (1, 2, 4)),
        *(small(f"length/prefill_{length}", _prompt(length)) for length in (64, 128, 256)),
        *(small(f"page/decode_b4_256_p{page_size}", _decodes(4, 256), page_size) for page_size in (1, 8, 16)),
        *(
            small(f"chunk/decode_b4_256_chunk{chunk_len}", _chunk(4, 256, chunk_len))
            for chunk_len in (16, 32, 64)
        ),
    ]
