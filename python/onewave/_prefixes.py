"""Prefixes that requests share: the argument of plan() that says so, as the planner takes it."""

from collections.abc import Sequence

import torch

from onewave._validate import check_int, check_tensor

CPU = torch.device("cpu")

# (request_begin, request_end, num_tokens) each.
PrefixGroups = Sequence[tuple[int, int, int]] | torch.Tensor


def make_prefix_groups(prefix_groups: PrefixGroups | None) -> torch.Tensor | None:
    """int32 [num_groups, 3] on the host; None where there are none. What the numbers must be the planner says."""
    if prefix_groups is None:
        return None
    if not isinstance(prefix_groups, torch.Tensor):
        if isinstance(prefix_groups, str) or not isinstance(prefix_groups, Sequence):
            raise TypeError(
                f"prefix_groups is a {type(prefix_groups).__name__}; it must be a sequence of tuples or a tensor"
            )
        prefix_groups = torch.tensor(
            [_check_group(i, group) for i, group in enumerate(prefix_groups)], dtype=torch.int32
        ).reshape(-1, 3)
    check_tensor("prefix_groups", prefix_groups, dtype=torch.int32, devices=(CPU,), num_dims=2)
    if prefix_groups.shape[1] != 3:
        raise ValueError(
            f"prefix_groups has shape {tuple(prefix_groups.shape)}; it must be [num_groups, 3], "
            "(request_begin, request_end, num_tokens) each"
        )
    return prefix_groups.contiguous() if len(prefix_groups) > 0 else None


def prefix_arguments(prefix_groups: torch.Tensor | None) -> dict[str, int]:
    """As the planner takes them: an address, which the caller keeps."""
    if prefix_groups is None:
        return {}
    return {"prefix_groups": prefix_groups.data_ptr(), "num_prefix_groups": len(prefix_groups)}


def _check_group(index: int, group: tuple[int, int, int]) -> tuple[int, int, int]:
    name = f"prefix_groups[{index}]"
    if not isinstance(group, Sequence) or len(group) != 3:
        raise ValueError(f"{name} is {group!r}; it must be (request_begin, request_end, num_tokens)")
    begin, end, num_tokens = (check_int(name, value, 0) for value in group)
    return begin, end, num_tokens
