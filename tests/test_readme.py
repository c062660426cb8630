"""README.md says what is so: its blocks run and its example is right, its commands are those that every change must pass."""

import re
from pathlib import Path

import torch
from doc_blocks import Blocks
from doc_commands import REPO, Commands
from onewave._cli.info import kernel_markdown
from reference import attend

README = (REPO / "README.md").read_text()
MAX_BF16_ERROR = 0.02


def test_its_blocks_run_and_the_example_is_right(tmp_path: Path) -> None:
    """With one change: on the CPU."""
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert example.count('device = "cuda"') == 1
    names = Blocks(REPO / "README.md", tmp_path, Commands(tmp_path, "cpu"), "cpu").run()
    group_size = names["num_qo_heads"] // names["num_kv_heads"]
    for i, kv_len in enumerate(names["kv_len_arr"].tolist()):
        rows = slice(*names["qo_indptr"][i : i + 2].tolist())
        pages = names["kv_indices"][slice(*names["kv_indptr"][i : i + 2].tolist())]
        k, v = (
            names["kv_cache"][pages, part]
            .flatten(0, 1)[:kv_len]
            .double()
            .repeat_interleave(group_size, dim=1)
            for part in range(2)
        )
        q = names["q"][rows].double()
        out, lse = attend(
            *(x.transpose(0, 1) for x in (q, k, v)), causal=True, sm_scale=names["head_dim"] ** -0.5
        )
        torch.testing.assert_close(
            names["out"][rows].double(), out.transpose(0, 1), atol=MAX_BF16_ERROR, rtol=0
        )
        torch.testing.assert_close(names["lse"][rows].double(), lse.T, atol=1e-4, rtol=0)


def test_its_kernels_are_those_inside() -> None:
    """`python -m onewave info --markdown` writes the table."""
    assert kernel_markdown() in README


def test_its_cmake_lines_are_those_of_the_consumer() -> None:
    (lines,) = re.findall(r"```cmake\n(.*?)```", README, re.DOTALL)
    consumer = (REPO / "tests/consumer/CMakeLists.txt").read_text().splitlines()
    assert not set(lines.replace("engine", "consumer").splitlines()) - set(consumer)


def test_its_commands_are_those_of_ci() -> None:
    commands = re.findall(r"^(python3 .*?)\s*(?:#.*)?$", README, re.MULTILINE)
    demo, test = commands
    ci = (REPO / ".ci/run").read_text()
    assert test in ci
    assert demo.removeprefix("python3 -m pip install . && ") in ci
