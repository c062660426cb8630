"""What the compiler made of the kernels: where it puts the products and their waits decides how fast they are, and it
says nothing when it changes its mind. The figures that may only improve are in kernel_figures.csv, of nvcc 13.0; write
it anew with `python3 tests/test_sass.py`."""

import csv
import re
from collections.abc import Callable
from pathlib import Path

import onewave
import pytest
from sass import Instruction, cubins, disassemble

LIBRARY = Path(onewave.__file__).parent / "lib/libonewave.so"
RESOURCES = LIBRARY.with_name("kernel_resources.csv")
FIGURES = Path(__file__).with_name("kernel_figures.csv")

# Of nvcc's releases: scheduling moves a few instructions.
TOLERANCE = 1.02
# Scores are issued for the first item, at an item's first tile and in its loop; O at the first tile and in the loop.
NUM_SCORES, NUM_OUTS = 3, 2

Figures = dict[str, int]
Kernel = tuple[str, list[Instruction]]

# A warp's loads and stores of 16 bytes a lane.
ROW_KERNELS = ("append", "append_fp8", "merge_states")
# Those without roles and products.
SMALL_KERNELS = (*ROW_KERNELS, "update_kv_lens")
# With the profiler, whose counting moves what surrounds it.
PROFILED = "_profiled"


def read_figures(path: Path) -> dict[str, Figures]:
    """A figure that a kernel does not have is empty in the file."""
    with path.open() as file:
        return {row.pop("kernel"): {k: int(v) for k, v in row.items() if v} for row in csv.DictReader(file)}


def kernels() -> dict[str, list[Instruction]]:
    return dict(zip(read_figures(RESOURCES), map(disassemble, cubins(LIBRARY)), strict=True))


def positions(code: list[Instruction], is_one: Callable[[Instruction], bool]) -> list[int]:
    return [i for i, instruction in enumerate(code) if is_one(instruction)]


def is_product(instruction: Instruction) -> bool:
    """Of 16-bit operands, or of e4m3."""
    return instruction.is_a("HGMMA") or instruction.is_a("QGMMA")


def is_of_weights(instruction: Instruction) -> bool:
    """Whose left operand lies in registers."""
    return is_product(instruction) and re.match(r"R\d+, R\d+, gdesc", instruction.operands) is not None


def is_sum(instruction: Instruction) -> bool:
    """Weights of e4m3 times eight columns of ones."""
    return is_of_weights(instruction) and ".64x8x32." in instruction.opcode


def is_out(instruction: Instruction) -> bool:
    """O += P V."""
    return is_of_weights(instruction) and not is_sum(instruction)


def is_score(instruction: Instruction) -> bool:
    return is_product(instruction) and not is_of_weights(instruction)


def head_dims(name: str) -> tuple[int, int]:
    """Of q and k, of v and out, by the kernel's name."""
    qk, vo = re.fullmatch(r"\w+?_d(\d+)_(?:(\d+)_)?(?:tma|gather)(?:_masked)?(?:_profiled)?", name).groups()  # type: ignore[union-attr]
    return int(qk), int(vo or qk)


def stage_kv(name: str) -> int:
    """Keys of a stage: stage_kv() of plan_format.h."""
    return 128 if head_dims(name)[1] <= 128 else 64


def has_fp8_queries(name: str) -> bool:
    return name.startswith("fp8_")


def product_k(name: str) -> int:
    """Columns of a product of scores, and keys of one of O."""
    return 32 if has_fp8_queries(name) else 16


def num_parts(name: str) -> int:
    """Of the columns of O, which are summed apart: head_dim / kSumCols of config.cuh."""
    if not has_fp8_queries(name):
        return 1
    is_tight = "gather" in name or "masked" in name
    return {128: 2 if is_tight else 1, 192: 2, 256: 4}.get(head_dims(name)[1], 1)


def num_outs(name: str) -> int:
    """Products of a tile's O."""
    return stage_kv(name) // product_k(name) * num_parts(name)


def wide_step(kernel: Kernel) -> list[Instruction]:
    """The wide kind's loop: from O of a tile to O of the next. (In the order of addresses, with the edge tiles' mask.)"""
    name, code = kernel
    outs = positions(code, is_out)
    return code[outs[-num_outs(name) - 1] + 1 : outs[-1] + 1]


def register_budgets(code: list[Instruction]) -> Figures:
    """What setmaxnreg asks for: more for consumers, less for the producer."""
    asked = sorted(int(i.operands.split(", ")[-1], 16) for i in code if i.is_a("USETMAXREG"))
    return dict(zip(("producer_registers", "consumer_registers"), asked, strict=True))


def figures() -> dict[str, Figures]:
    found = read_figures(RESOURCES)
    for name, code in kernels().items():
        is_attention = name not in SMALL_KERNELS
        found[name] |= register_budgets(code) if is_attention else {}
        found[name]["instructions"] = len(code)
        found[name] |= {"wide_step_instructions": len(wide_step((name, code)))} if is_attention else {}
    return found


ATTENTION_KERNELS = [name for name in read_figures(RESOURCES) if name not in SMALL_KERNELS]


@pytest.fixture(scope="module", params=ATTENTION_KERNELS)
def any_kernel(request: pytest.FixtureRequest) -> Kernel:
    """One of attention."""
    return request.param, kernels()[request.param]


@pytest.fixture(scope="module", params=[name for name in ATTENTION_KERNELS if not name.endswith(PROFILED)])
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """One that users time."""
    return request.param, kernels()[request.param]


def test_no_figure_is_worse() -> None:
    recorded, found = read_figures(FIGURES), figures()
    assert found.keys() == recorded.keys()
    worse = [
        f"{name}: {figure} is {found[name][figure]}, was {value}"
        for name, row in recorded.items()
        for figure, value in row.items()
        if found[name][figure] > value * TOLERANCE
    ]
    assert not worse


def test_nothing_lies_in_local_memory() -> None:
    for name, code in kernels().items():
        assert name.endswith(PROFILED) or not [i for i in code if i.is_a("LDL") or i.is_a("STL")], name


def test_only_the_profiler_reads_a_clock(any_kernel: Kernel) -> None:
    """The others pay nothing for it."""
    name, code = any_kernel
    clocks = [i for i in code if "SR_CLOCK" in i.operands or "SR_GLOBALTIMER" in i.operands]
    assert bool(clocks) == name.endswith(PROFILED)


@pytest.mark.parametrize("name", ROW_KERNELS)
def test_rows_are_read_and_written_16_bytes_at_a_time(name: str) -> None:
    code = kernels()[name]
    loads = [i.opcode for i in code if i.is_a("LDG")]
    stores = [i.opcode for i in code if i.is_a("STG")]
    # K and V; of each of three types K and V, of 4, 2 and 2 bytes for each of fp8; of each of three types four states
    # and one result.
    expected = {"append": (2, 2), "append_fp8": (16, 6), "merge_states": (12, 3)}[name]
    assert (loads.count("LDG.E.128"), stores.count("STG.E.128")) == expected


@pytest.mark.parametrize("name", ["append", "append_fp8"])
def test_new_rows_are_on_their_way_before_their_place_is_known(name: str) -> None:
    """For each type as many loads of K as of V, and after them those of a request's pages (two) and of a page id, which
    wait for branches of rows that are skipped."""
    loads = "".join("x" if i.opcode == "LDG.E.128" else "." for i in kernels()[name] if i.is_a("LDG"))
    assert re.fullmatch(r"(?:\.*(x+)\.*\1\.{3,})+", loads)


def test_the_roles_fit_the_registers_of_a_cta(any_kernel: Kernel) -> None:
    budgets = register_budgets(any_kernel[1])
    assert budgets["producer_registers"] + 2 * budgets["consumer_registers"] <= 3 * 168


def test_every_product_is_there_once(any_kernel: Kernel) -> None:
    name, code = any_kernel
    assert len(positions(code, is_score)) == NUM_SCORES * head_dims(name)[0] // product_k(name)
    assert len(positions(code, is_out)) == NUM_OUTS * num_outs(name)
    num_sums = stage_kv(name) // product_k(name) if has_fp8_queries(name) else 0
    assert len(positions(code, is_sum)) == NUM_OUTS * num_sums


def test_no_product_is_serialised(any_kernel: Kernel) -> None:
    """Only the last product of a group can be waited for; where the compiler serialises, every one is."""
    name, code = any_kernel
    last_ones = [i for i in code if is_product(i) and i.operands.endswith(", gsb0")]
    expected = [NUM_SCORES, NUM_OUTS * num_parts(name), NUM_OUTS * has_fp8_queries(name)]
    assert [sum(map(is_one, last_ones)) for is_one in (is_score, is_out, is_sum)] == expected


def test_exponentials_run_under_the_next_scores(kernel: Kernel) -> None:
    step = wide_step(kernel)
    first_score, first_out = positions(step, is_score)[0], positions(step, is_out)[0]
    exponentials = positions(step, lambda i: i.opcode == "MUFU.EX2")
    part = 1 / 2 if has_fp8_queries(kernel[0]) else 7 / 8  # of e4m3 there are half as many scores to issue
    assert sum(first_score < i < first_out for i in exponentials) >= stage_kv(kernel[0]) // 2 * part


def test_maxima_run_under_the_last_product(kernel: Kernel) -> None:
    """The wait for O comes after them, and there is no other in the step than that and the one for the scores. (Of e4m3
    each part of O is waited for at once.)"""
    step = wide_step(kernel)
    waits = positions(step, lambda i: i.opcode.startswith("WARPGROUP.DEPBAR"))
    maxima = positions(step, lambda i: i.is_a("FMNMX"))
    if has_fp8_queries(kernel[0]):
        assert len(waits) == num_parts(kernel[0])
        return
    assert len(waits) == 2
    assert sum(waits[0] < i < waits[1] for i in maxima) >= stage_kv(kernel[0]) // 2


def write_figures() -> None:
    found = figures()
    with FIGURES.open("w", newline="") as file:
        columns = ["kernel", *next(iter(found.values()))]
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({"kernel": name} | row for name, row in found.items())


if __name__ == "__main__":
    write_figures()
