"""onewave as an attention of Hugging Face transformers: for its continuous batching with a paged cache, and for plain forward
passes. Needs transformers 5.17 or newer: `pip install 'onewave[generate]'`."""

from onewave.integrations.transformers._generate import (
    continuous_batching,
    generate_batch,
    make_config,
    register,
)
from onewave.integrations.transformers._library import MissingTransformers, import_transformers
from onewave.integrations.transformers._stopwatch import Stopwatch

__all__ = [
    "MissingTransformers",
    "Stopwatch",
    "continuous_batching",
    "generate_batch",
    "import_transformers",
    "make_config",
    "register",
]
