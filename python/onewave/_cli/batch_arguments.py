"""A batch on the command line: requests, a file of them, or a workload of the benchmark."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from onewave._validate import check_int
from onewave.bench.workload import Request, Workload
from onewave.bench.workloads import WORKLOADS

REQUESTS = re.compile(r"(\d+):(\d+)(?:x(\d+))?")


def add_batch_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "requests",
        nargs="*",
        metavar="KV_LEN:QO_LEN[xCOUNT]",
        help="requests in tokens, such as 8192:1x128 8192:4096 (128 decodes and a prompt's last half)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="requests as [[kv_len, qo_len], ...]; '-': standard input"
    )
    parser.add_argument("--workload", choices=WORKLOADS, metavar="NAME", help="one of the benchmark's")
    parser.add_argument("--num-qo-heads", type=int, help="default: 32, or the workload's")
    parser.add_argument("--num-kv-heads", type=int, help="default: 8, or the workload's")
    parser.add_argument(
        "--head-dim", type=int, help="a multiple of 32 up to 256 (default: 128, or the workload's)"
    )
    parser.add_argument("--page-size", type=int, help="tokens (default: 16, or the workload's)")
    parser.add_argument(
        "--full", action="store_true", help="every query sees every key, not only earlier ones"
    )
    parser.add_argument("--num-ctas", type=int, help="CTAs of the wave (default: 132)")


def workload_of(options: argparse.Namespace) -> Workload:
    """The batch that the options name, in one of three ways. Raises ValueError where they name none."""
    if sum(map(bool, (options.requests, options.json, options.workload))) != 1:
        raise ValueError("give requests, --json or --workload, one of the three")
    if options.workload:
        workload = WORKLOADS[options.workload]
    else:
        requests = _read_json(options.json) if options.json else _parse(options.requests)
        workload = Workload("batch", tuple(requests))
    given = {
        name: getattr(options, name)
        for name in ("num_qo_heads", "num_kv_heads", "head_dim", "page_size", "num_ctas")
        if getattr(options, name) is not None
    }
    for name, value in given.items():
        check_int(name, value, 1)
    return replace(workload, **given, causal=workload.causal and not options.full)


def _parse(texts: Sequence[str]) -> list[Request]:
    requests = []
    for text in texts:
        match = REQUESTS.fullmatch(text)
        if match is None:
            raise ValueError(f"request {text!r} must be KV_LEN:QO_LEN or KV_LEN:QO_LENxCOUNT, in tokens")
        kv_len, qo_len, count = (int(group or 1) for group in match.groups())
        requests += [_request(kv_len, qo_len)] * count
    return requests


def _read_json(path: Path) -> list[Request]:
    text = sys.stdin.read() if path == Path("-") else path.read_text()
    try:
        pairs = json.loads(text)
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in pairs
        ):
            raise ValueError("it must hold a list of [kv_len, qo_len]")
        return [_request(*pair) for pair in pairs]
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _request(kv_len: Any, qo_len: Any) -> Request:
    try:
        return Request(check_int("kv_len", kv_len, 0), check_int("qo_len", qo_len, 0))
    except TypeError as error:
        raise ValueError(str(error)) from error
