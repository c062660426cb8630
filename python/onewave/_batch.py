"""The index tensors of one step, checked and on the side where they are read."""

import ctypes
from typing import NamedTuple

import torch

from onewave._validate import check_index_array

CPU = torch.device("cpu")


class Batch(NamedTuple):
    """One step: lengths on the host, page ids where the caller has them."""

    qo_indptr: torch.Tensor  # [batch_size + 1], tokens
    kv_indptr: torch.Tensor  # [batch_size + 1], pages
    kv_len_arr: torch.Tensor  # [batch_size], tokens
    kv_indices: torch.Tensor  # at least kv_indptr[batch_size] page ids
    total_qo_len: int
    max_page_id: int  # of the page ids in use; -1 where there are none or they are on the device

    def addresses(self, kv_indices: torch.Tensor) -> tuple[int, int, int, int, int]:
        """The batch size and the addresses that the planner takes."""
        return (
            self.kv_len_arr.numel(),
            self.qo_indptr.data_ptr(),
            self.kv_indptr.data_ptr(),
            self.kv_len_arr.data_ptr(),
            kv_indices.data_ptr(),
        )


def make_batch(
    device: torch.device,
    qo_indptr: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_len_arr: torch.Tensor,
) -> Batch:
    """Checks all that the planner cannot see: types, devices, sizes, and page ids that are on the host."""
    lens = (qo_indptr, kv_indptr, kv_len_arr)
    # Nearly always; the checks in words cost a plan of a small batch as much as planning.
    are_right = all(map(_is_index_array, (*lens, kv_indices)))
    if not (are_right and all(tensor.is_cpu for tensor in lens) and _is_on(kv_indices, device)):
        _check_index_arrays(device, qo_indptr, kv_indptr, kv_indices, kv_len_arr)
        qo_indptr, kv_indptr, kv_len_arr = _to_host(device, *lens)
    batch_size = kv_len_arr.numel()
    for name, tensor in (("qo_indptr", qo_indptr), ("kv_indptr", kv_indptr)):
        if tensor.numel() != batch_size + 1:
            raise ValueError(
                f"{name} has {tensor.numel()} elements; it must have {batch_size + 1}, "
                f"one more than the {batch_size} of kv_len_arr"
            )
    return Batch(
        qo_indptr,
        kv_indptr,
        kv_len_arr,
        kv_indices,
        _last_element(qo_indptr),
        _check_page_ids(kv_indices, _last_element(kv_indptr)),
    )


def _is_index_array(tensor: torch.Tensor) -> bool:
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.dtype is torch.int32
        and tensor.dim() == 1
        and tensor.is_contiguous()
    )


def _is_on(tensor: torch.Tensor, device: torch.device) -> bool:
    return tensor.is_cpu or tensor.device == device


def _check_index_arrays(device: torch.device, *tensors: torch.Tensor) -> None:
    """Raises for what is wrong, in words."""
    devices = (CPU,) if device == CPU else (CPU, device)
    for name, tensor in zip(("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr"), tensors, strict=True):
        check_index_array(name, tensor, devices)


def _last_element(tensor: torch.Tensor) -> int:
    """Of an int32 array on the host. Indexing a tensor takes ten times as long."""
    return ctypes.c_int32.from_address(tensor.data_ptr() + 4 * (tensor.numel() - 1)).value


def _to_host(device: torch.device, *tensors: torch.Tensor) -> list[torch.Tensor]:
    """The tensors on the host: themselves, or copies that one synchronisation of the current stream waits for."""
    if all(tensor.device == CPU for tensor in tensors):
        return list(tensors)
    on_host = [
        tensor
        if tensor.device == CPU
        else torch.empty_like(tensor, device=CPU, pin_memory=True).copy_(tensor, non_blocking=True)
        for tensor in tensors
    ]
    torch.cuda.current_stream(device).synchronize()
    return on_host


def _check_page_ids(kv_indices: torch.Tensor, num_used: int) -> int:
    """The largest page id in use, -1 where it is not known. Page ids on the device are not looked at."""
    if num_used > kv_indices.numel():
        raise ValueError(
            f"kv_indices has {kv_indices.numel()} page ids; it must have {num_used}, the last element of kv_indptr"
        )
    # A kv_indptr that ends below 0 is an error that the planner reports.
    if kv_indices.device != CPU or num_used <= 0:
        return -1
    smallest, largest = (int(bound) for bound in kv_indices[:num_used].aminmax())
    if smallest < 0:
        raise ValueError(f"kv_indices has page id {smallest}; page ids must be 0 or more")
    return largest
