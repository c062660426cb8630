"""Where the CMake package of the C++ library is."""

from pathlib import Path

from onewave import _core


def show_cmake_dir() -> int:
    """One line, for the shell to put into another command."""
    # Beside the extension, which is not where the sources are if they were installed to be edited.
    print(Path(_core.__file__).parent / "lib/cmake/onewave")
    return 0
