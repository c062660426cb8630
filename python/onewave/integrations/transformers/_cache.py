"""The paged cache of transformers' continuous batching, as its versions keep it: what onewave reads and writes of it."""

import inspect
from typing import Any, NamedTuple

import torch

from onewave.integrations.transformers._library import import_transformers

FULL = "full_attention"
SLIDING = "sliding_attention"


class LayerGroup(NamedTuple):
    """Layers that share page tables and lengths."""

    group_idx: int  # in read_index and write_index
    layer_type: str  # in cu_seq_lens_k


def is_paged_cache(cache: Any) -> bool:
    return isinstance(cache, import_transformers("generation.continuous_batching").PagedAttentionCache)


class PagedCache:
    """K and V of all layers.

    From 5.18 on there is an allocator for each type of layers, in one tensor of all layers' pages; before, groups of as many
    layers each, and a tensor for the layers of one place in all groups.
    """

    def __init__(self, cache: Any) -> None:
        if not hasattr(cache, "layer_to_allocator") and not hasattr(cache, "layer_index_to_group_indices"):
            raise NotImplementedError(
                f"onewave does not know the paged cache of transformers {import_transformers().__version__}: it has neither "
                "layer_to_allocator nor layer_index_to_group_indices"
            )
        self._cache = cache
        self._allocators = getattr(cache, "layer_to_allocator", None)
        self.max_batch_tokens = int(cache.max_batch_tokens)  # query tokens of a step

    def group_of(self, layer_idx: int) -> LayerGroup:
        if self._allocators is None:
            group_idx, _ = self._cache.layer_index_to_group_indices[layer_idx]
            return LayerGroup(group_idx, FULL if self._cache.sliding_windows[layer_idx] == 1 else SLIDING)
        allocator = self._allocators[layer_idx]
        types = self._cache.cache_allocators.items()
        return LayerGroup(allocator.index, next(name for name, of_type in types if of_type is allocator))

    def pages_of(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer of full attention, in place: [num_pages, page_size, num_kv_heads, head_dim] each. Index i of
        its group is token i % page_size of page i // page_size."""
        if self._allocators is None:
            _, place = self._cache.layer_index_to_group_indices[layer_idx]
            page = (-1, self._cache.block_size, self._cache.num_key_value_heads, self._cache.head_dim)
            return self._cache.key_cache[place].view(page), self._cache.value_cache[place].view(page)
        k_pages, v_pages = self._allocators[layer_idx].get_cache_for_block_table(layer_idx)
        return k_pages, v_pages

    def write_and_gather(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        layer_idx: int,
        read_index: list[torch.Tensor],
        write_index: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """For a layer of a sliding window, a ring whose oldest rows the new ones overwrite: K and V of each request that the
        queries of this step can see, old and new, one request after another, [total_kv_len, num_kv_heads, head_dim]."""
        if self._allocators is not None and "kwargs" in inspect.signature(self._cache.update).parameters:
            group_idx, _ = self.group_of(layer_idx)
            k_rows, v_rows = self._allocators[layer_idx].update(
                key, value, layer_idx, read_index[group_idx], write_index[group_idx]
            )
        else:  # until 5.18
            key, value = (rows.transpose(0, 1).unsqueeze(0) for rows in (key, value))
            k_rows, v_rows = self._cache.update(key, value, layer_idx, read_index, write_index)
        return k_rows, v_rows
