"""The index tensors of one step, checked and on the side where they are read."""

import ctypes
from typing import Any, NamedTuple, cast

import torch

from onewave._prefixes import PrefixGroups, make_prefix_groups, prefix_arguments
from onewave._validate import check_index_array, check_tensor, describe

CPU = torch.device("cpu")


class Batch(NamedTuple):
    """One step: lengths on the host, page ids where the caller has them."""

    qo_indptr: torch.Tensor  # [batch_size + 1], tokens
    kv_indptr: torch.Tensor | None  # [batch_size + 1], pages; None: kv_indices is a block table
    kv_len_arr: torch.Tensor  # [batch_size], tokens
    kv_indices: torch.Tensor  # at least kv_indptr[batch_size] page ids, or a block table
    total_qo_len: int
    actual_kv_len_arr: torch.Tensor | None  # [at least batch_size] on the device: kv_len_arr are upper bounds
    max_page_id: int  # of the page ids in use; -1 where there are none or they are on the device
    prefix_groups: torch.Tensor | None = None  # int32 [num_groups, 3] on the host

    def arguments(self, kv_indices: torch.Tensor) -> dict[str, Any]:
        """What the planner takes of it: the batch size and addresses, and what only some batches have."""
        arguments: dict[str, Any] = {
            "batch_size": self.kv_len_arr.numel(),
            "qo_indptr": self.qo_indptr.data_ptr(),
            "kv_indptr": 0 if self.kv_indptr is None else self.kv_indptr.data_ptr(),
            "kv_len_arr": self.kv_len_arr.data_ptr(),
            "kv_indices": kv_indices.data_ptr(),
            **prefix_arguments(self.prefix_groups),
        }
        if self.kv_indptr is None:
            arguments["block_table_width"] = kv_indices.shape[1]
            arguments["block_table_stride"] = kv_indices.stride(0)
        if self.actual_kv_len_arr is not None:
            arguments["actual_kv_len_arr"] = self.actual_kv_len_arr.data_ptr()
        return arguments


def make_batch(
    device: torch.device,
    qo_indptr: torch.Tensor,
    kv_indptr: torch.Tensor | None,
    kv_indices: torch.Tensor | None,
    kv_len_arr: torch.Tensor,
    block_table: torch.Tensor | None,
    actual_kv_len_arr: torch.Tensor | None,
    page_size: int,
    prefix_groups: PrefixGroups | None = None,
) -> Batch:
    """Checks all that the planner cannot see: types, devices, sizes, and page ids that are on the host."""
    if block_table is not None:
        for name, tensor in (("kv_indptr", kv_indptr), ("kv_indices", kv_indices)):
            if tensor is not None:
                raise ValueError(f"{name} is {describe(tensor)}; it must be None with a block_table")
        batch = _make_block_table_batch(device, qo_indptr, kv_len_arr, block_table, page_size)
    else:
        # None is refused, in words.
        csr = (cast(torch.Tensor, kv_indptr), cast(torch.Tensor, kv_indices))
        batch = _make_csr_batch(device, qo_indptr, *csr, kv_len_arr)
    if prefix_groups is not None:
        batch = batch._replace(prefix_groups=make_prefix_groups(prefix_groups))
    if actual_kv_len_arr is None:
        return batch
    _check_actual_lens(device, actual_kv_len_arr, batch.kv_len_arr.numel())
    return batch._replace(actual_kv_len_arr=actual_kv_len_arr)


def _check_actual_lens(device: torch.device, tensor: torch.Tensor, batch_size: int) -> None:
    check_index_array("actual_kv_len_arr", tensor, (device,))
    if tensor.numel() < batch_size:
        raise ValueError(
            f"actual_kv_len_arr has {tensor.numel()} elements; it must have the {batch_size} of kv_len_arr or more"
        )


def _make_csr_batch(
    device: torch.device,
    qo_indptr: torch.Tensor,
    kv_indptr: torch.Tensor,
    kv_indices: torch.Tensor,
    kv_len_arr: torch.Tensor,
) -> Batch:
    lens = (qo_indptr, kv_indptr, kv_len_arr)
    # Nearly always; the checks in words cost a plan of a small batch as much as planning.
    are_right = all(map(_is_index_array, (*lens, kv_indices)))
    if not (are_right and all(tensor.is_cpu for tensor in lens) and _is_on(kv_indices, device)):
        names = ("qo_indptr", "kv_indptr", "kv_indices", "kv_len_arr")
        _check_index_arrays(device, names, (qo_indptr, kv_indptr, kv_indices, kv_len_arr))
        qo_indptr, kv_indptr, kv_len_arr = _to_host(device, *lens)
    batch_size = kv_len_arr.numel()
    _check_indptr("qo_indptr", qo_indptr, batch_size)
    _check_indptr("kv_indptr", kv_indptr, batch_size)
    return Batch(
        qo_indptr,
        kv_indptr,
        kv_len_arr,
        kv_indices,
        _last_element(qo_indptr),
        None,
        _check_page_ids(kv_indices, _last_element(kv_indptr)),
    )


def _make_block_table_batch(
    device: torch.device,
    qo_indptr: torch.Tensor,
    kv_len_arr: torch.Tensor,
    block_table: torch.Tensor,
    page_size: int,
) -> Batch:
    _check_index_arrays(device, ("qo_indptr", "kv_len_arr"), (qo_indptr, kv_len_arr))
    devices = _devices_of_indices(device)
    check_tensor("block_table", block_table, dtype=torch.int32, devices=devices, num_dims=2)
    qo_indptr, kv_len_arr = _to_host(device, qo_indptr, kv_len_arr)
    batch_size = kv_len_arr.numel()
    _check_indptr("qo_indptr", qo_indptr, batch_size)
    if block_table.shape[0] < batch_size or block_table.shape[1] == 0:
        raise ValueError(
            f"block_table has shape {tuple(block_table.shape)}; it must have a row of page ids for each of the "
            f"{batch_size} requests"
        )
    if block_table.stride(1) != 1 and block_table.shape[1] > 1:
        raise ValueError(f"block_table has strides {block_table.stride()}; the last one must be 1")
    max_page_id = -1
    if block_table.is_cpu:
        block_table = block_table[:batch_size].contiguous()
        num_pages = (kv_len_arr + (page_size - 1)) // page_size
        used = block_table[torch.arange(block_table.shape[1]) < num_pages[:, None]]
        max_page_id = _check_host_page_ids("block_table", used)
    return Batch(qo_indptr, None, kv_len_arr, block_table, _last_element(qo_indptr), None, max_page_id)


def _check_indptr(name: str, tensor: torch.Tensor, batch_size: int) -> None:
    if tensor.numel() != batch_size + 1:
        raise ValueError(
            f"{name} has {tensor.numel()} elements; it must have {batch_size + 1}, "
            f"one more than the {batch_size} of kv_len_arr"
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


def _devices_of_indices(device: torch.device) -> tuple[torch.device, ...]:
    return (CPU,) if device == CPU else (CPU, device)


def _check_index_arrays(
    device: torch.device, names: tuple[str, ...], tensors: tuple[torch.Tensor, ...]
) -> None:
    """Raises for what is wrong, in words."""
    for name, tensor in zip(names, tensors, strict=True):
        check_index_array(name, tensor, _devices_of_indices(device))


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
    return _check_host_page_ids("kv_indices", kv_indices[:num_used])


def _check_host_page_ids(name: str, page_ids: torch.Tensor) -> int:
    if page_ids.numel() == 0:
        return -1
    smallest, largest = (int(bound) for bound in page_ids.aminmax())
    if smallest < 0:
        raise ValueError(f"{name} has page id {smallest}; page ids must be 0 or more")
    return largest
