"""The attention of one LLM serving step, over a paged KV cache, in one launch of one persistent Hopper kernel."""

from onewave._core import DeviceError
from onewave._core import version as __version__
from onewave.attention import BatchAttention
from onewave.cascade import merge_state, merge_state_in_place, merge_states
from onewave.page import append_paged_kv_cache, get_batch_indices_positions
from onewave.workspace import workspace_size

__all__ = [
    "BatchAttention",
    "DeviceError",
    "__version__",
    "append_paged_kv_cache",
    "get_batch_indices_positions",
    "merge_state",
    "merge_state_in_place",
    "merge_states",
    "workspace_size",
]
