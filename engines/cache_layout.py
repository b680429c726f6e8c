"""Which cache tensors a decoder layer has in a recipe, once its numbers have a target's type."""

from export.recipe.recipe import CacheFormat
from runtime import names
from runtime.artifact.records import CacheRecord, CacheTensor
from runtime.config import DecoderConfig

TYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""Base types of recipes as the manifest calls them."""


def cache_record(config: DecoderConfig, form: CacheFormat | None, base: str) -> CacheRecord:
    """List the cache tensors of a layer, in the order of its inputs, which is that of names.

    Args:
        config: sizes of the decoder.
        form: of the recipe; None keeps whole rows in the base type.
        base: `fp32`, `fp16` or `bf16`: the type of what is not int8.
    """
    dtype, rank = TYPE_NAMES[base], config.latent_rank
    if form is None:
        tensors = {names.CACHE: CacheTensor(dtype=dtype, width=config.latent_width)}
    else:
        tensors = {
            names.CACHE: CacheTensor(dtype="int8", width=rank),
            names.CACHE_KEYS: CacheTensor(dtype=dtype, width=config.latent_width - rank),
            names.CACHE_SCALES: CacheTensor(dtype=dtype, width=rank // form.group),
        }
    return CacheRecord(tensors=tensors)
