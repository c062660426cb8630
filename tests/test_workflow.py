"""What GitHub and pre-commit run is what .ci/run and README.md say, with the same versions; CONTRIBUTING.md names what
there is. (That the workflow is one is for the hooks to say.)"""

import re
from pathlib import Path
from typing import Any

import yaml

REPO = Path(__file__).resolve().parent.parent
PYPROJECT = (REPO / "pyproject.toml").read_text()
CI_RUN = (REPO / ".ci/run").read_text()
CONTRIBUTING = (REPO / "CONTRIBUTING.md").read_text()
JOBS: dict[str, dict[str, Any]] = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())["jobs"]
CONFIG = (REPO / ".pre-commit-config.yaml").read_text()
HOOKS: list[dict[str, Any]] = yaml.safe_load(CONFIG)["repos"][0]["hooks"]


def setting(pattern: str) -> str:
    """The one place of pyproject.toml that matches."""
    (value,) = re.findall(pattern, PYPROJECT, re.MULTILINE)
    return str(value)


def versions(requirements: str) -> dict[str, str]:
    """Of what is pinned."""
    return dict(re.findall(r"([\w-]+)==([\w.]+)", requirements))


def commands(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def pythons(job: str) -> list[tuple[int, ...]]:
    names = JOBS[job]["strategy"]["matrix"]["python"]
    return [tuple(map(int, name.split("."))) for name in names]


def test_hooks_have_the_versions_of_the_group_dev() -> None:
    dev = versions(setting(r"^dev = (.+)$"))
    assert dev.keys() == {"clang-format", "mypy", "ruff"}
    own = [hook for hook in HOOKS if hook["language"] == "python"]
    assert [hook["id"] for hook in HOOKS if hook not in own] == ["mypy"]  # that of the environment
    used: set[tuple[str, str]] = set()
    for hook in own:
        (requirement,) = hook["additional_dependencies"]
        used |= versions(requirement).items()
        assert versions(requirement), f"{hook['id']}: {requirement} is not pinned"
    del dev["mypy"]
    assert {name: version for name, version in used if name in dev} == dev
    assert len(dict(used)) == len(used), f"two versions of one package: {used}"


def test_every_change_passes_the_hooks() -> None:
    assert "python3 -m pip install --group dev\npre-commit run --all-files" in CI_RUN


def test_the_workflow_runs_all_that_a_change_must_pass() -> None:
    assert commands("checks") == [".ci/run"]
    oldest = tuple(map(int, setting(r'^requires-python = ">=([\d.]+)"').split(".")))
    assert min(pythons("checks")) == oldest < max(pythons("checks"))


def test_the_wheel_is_built_once_by_the_oldest_python() -> None:
    build = setting(r'^build = "(\w+)-manylinux_x86_64"$')
    assert build == setting(r'^wheel.py-api = "(.+)"$')
    assert setting(r'^manylinux-x86_64-image = "(.+)"$') in CONTRIBUTING
    build_command = commands("wheel")[-1]
    assert re.fullmatch(r"python3 -m pip install cibuildwheel==[\d.]+", commands("wheel")[0])
    (folder,) = re.findall(r"cibuildwheel --output-dir (\w+)$", build_command)
    upload, download = JOBS["wheel"]["steps"][-1], JOBS["wheel-tests"]["steps"][2]
    assert upload["with"]["path"] == f"{folder}/*.whl"
    assert download["with"] == {"name": upload["with"]["name"], "path": folder}


def test_the_wheel_is_tested_elsewhere_as_in_ci() -> None:
    assert JOBS["wheel-tests"]["needs"] == "wheel"
    assert not set(pythons("wheel-tests")) & {(3, 10), *pythons("checks")}
    _, torch, install, *tests = commands("wheel-tests")
    assert torch in CI_RUN
    assert install.replace("${ONEWAVE_WHEEL}", ".").replace('"', "'") + f" && {tests[0]}\n" in CI_RUN
    assert all(f"{command}\n" in CI_RUN for command in tests[1:])


def test_contributing_names_what_there_is() -> None:
    folders = r"(?<![\w/])(?:tests|bench|cmake|cpp|cuda|python|\.ci|\.github)/"
    paths = set(re.findall(folders + r"[\w./-]*\w", CONTRIBUTING))
    assert len(paths) > 10
    assert not {path for path in paths if not (REPO / path).exists()}
    kernel = (REPO / "cmake/Kernels.cmake").read_text() + (REPO / "CMakeLists.txt").read_text()
    options = set(re.findall(r"\bONEWAVE_[A-Z_]*(?:SOURCE|SANITIZER|PYTHON)\b", CONTRIBUTING))
    assert options and all(option in kernel for option in options)
