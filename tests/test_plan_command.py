"""`python -m onewave plan`: the table, the picture and what it refuses."""

import json
import re
from pathlib import Path

import pytest
from cli_here import run_cli_here
from test_cli import row


def test_the_table_of_a_mixed_batch() -> None:
    done = run_cli_here("plan", "8192:1x128", "8192:4096", "--num-qo-heads", "28", "--num-kv-heads", "4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "128 x (8192, 1) + 1 x (8192, 4096), 28/4 heads" in done.stdout
    match = re.fullmatch(r"132, (\d+) begin narrow", row(done.stdout, "CTAs"))
    assert match and 0 < int(match[1]) < 132
    assert 1 <= float(row(done.stdout, "max / mean")) < 1.1
    kinds = ("narrow", "narrow, split", "wide", "wide, split")
    shares = [float(row(done.stdout, f"of the time {kind}").rstrip("%")) for kind in kinds]
    assert sum(shares) == pytest.approx(100, abs=0.3) and shares[2] > 30


def test_requests_from_a_file_are_those_of_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "batch.json"
    file.write_text(json.dumps([[300, 1]] * 3 + [[50, 40]]))
    of_file = run_cli_here("plan", "--json", str(file), "--num-ctas", "7")
    of_line = run_cli_here("plan", "300:1x3", "50:40", "--num-ctas", "7")
    assert of_file.returncode == 0, of_file.stdout + of_file.stderr
    assert of_file.stdout == of_line.stdout
    assert row(of_file.stdout, "CTAs").startswith("7, ")


def test_a_workload_of_the_benchmark() -> None:
    done = run_cli_here("plan", "--workload", "decode_33ctas_p16", "--full")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "page 16, full mask, 33 CTAs" in done.stdout
    assert row(done.stdout, "CTAs") == "33, 33 begin narrow"


def test_a_workload_with_a_shared_prefix_is_planned_with_it() -> None:
    done = run_cli_here("plan", "--workload", "decode_b64_prefix16k")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16384 of the tokens shared" in done.stdout
    assert float(row(done.stdout, "of the time wide, split").rstrip("%")) > 20


def test_a_workload_with_a_window_is_planned_with_it() -> None:
    """Requests of 32768 keys that see 1024 take as long as those of 1024."""
    makespans = []
    for name in ("decode_b128_32k_window1k", "decode_b128_1k"):
        done = run_cli_here("plan", "--workload", name)
        assert done.returncode == 0, done.stdout + done.stderr
        makespans.append(float(row(done.stdout, "predicted makespan").split()[0]))
    assert makespans[0] == pytest.approx(makespans[1], rel=0.1)


def test_the_picture_has_a_bar_for_every_item(tmp_path: Path) -> None:
    png, svg = tmp_path / "plan.png", tmp_path / "folder" / "plan.svg"
    done = run_cli_here("plan", "3000:1x40", "2000:2000", "--output", str(png), "--output", str(svg))
    assert done.returncode == 0, done.stdout + done.stderr
    assert png.read_bytes().startswith(b"\x89PNG")
    num_items = int(row(done.stdout, "items").split(",")[0])
    num_patches = len(re.findall(r'id="patch_\d+"', svg.read_text()))
    assert num_items < num_patches < num_items + 20  # the frame's and the legend's beside


def test_an_empty_batch_can_be_drawn(tmp_path: Path) -> None:
    done = run_cli_here("plan", "0:0", "--output", str(tmp_path / "plan.png"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert row(done.stdout, "max / mean") == "-"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give requests, --json or --workload, one of the three"),
        (("5:1", "--workload", "decode_b16_4k"), "one of the three"),
        (("5",), "request '5' must be KV_LEN:QO_LEN"),
        (("5:1x",), "request '5:1x' must be"),
        (("--json", "/no/such/file"), "No such file"),
        (("5:1", "--head-dim", "80"), "head_dim_qk is 80, it must be a multiple of 32"),
        (("5:1", "--num-qo-heads", "9"), "num_qo_heads is 9, it must be a multiple of num_kv_heads = 8"),
        (("5:1", "--num-ctas", "0"), "num_ctas is 0; it must be from 1"),
        (("5:1", "--page-size", "-1"), "page_size is -1; it must be from 1"),
    ],
)
def test_what_is_no_batch_is_told_in_a_line(arguments: tuple[str, ...], message: str) -> None:
    done = run_cli_here("plan", *arguments)
    assert done.returncode == 2 and message in done.stdout and "Traceback" not in done.stderr, done


@pytest.mark.parametrize("text", ["{}", "[[1]]", '[["a", 1]]', "[[1, -1]]", "[[1, true]]", "nonsense"])
def test_a_file_that_holds_no_batch(tmp_path: Path, text: str) -> None:
    file = tmp_path / "batch.json"
    file.write_text(text)
    done = run_cli_here("plan", "--json", str(file))
    assert done.returncode == 2 and "Traceback" not in done.stderr, done
    assert f"{file}: " in done.stdout.replace("\n", "")
