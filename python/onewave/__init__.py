"""The attention of one LLM serving step, over a paged KV cache, in one launch of one persistent Hopper kernel."""

from onewave._core import DeviceError
from onewave._core import version as __version__
from onewave.attention import BatchAttention
from onewave.workspace import workspace_size

__all__ = ["BatchAttention", "DeviceError", "__version__", "workspace_size"]
