"""Stock loader nodes' models in the pool, where ComfyUI takes cache providers (since 0.18)."""

from __future__ import annotations

from typing import Any

try:
    from comfy_api.latest import Caching
except ImportError:  # before 0.18
    Caching = None

PARTS: dict[str, tuple[str, ...]] = {
    "CheckpointLoaderSimple": ("model", "clip", "vae"),
    "UNETLoader": ("model",),
    "CLIPLoader": ("clip",),
    "DualCLIPLoader": ("clip",),
    "TripleCLIPLoader": ("clip",),
    "QuadrupleCLIPLoader": ("clip",),
    "VAELoader": ("vae",),
}
"""Which outputs of which nodes are kept, in their order."""


async def register_stock_loader_cache() -> None:
    """Offer the pool to ComfyUI's own loaders; does nothing on versions without providers."""
    if Caching is not None:
        await Caching().register_provider(_provider(Caching))


def _provider(caching: Any) -> Any:
    class StockLoaderCache(caching.CacheProvider):
        """ComfyUI asks it for what its own cache does not have, before it runs a node."""

        def should_cache(self, context: Any, value: Any = None) -> bool:
            parts = PARTS.get(context.class_type)
            if parts is None:
                return False
            if value is not None:
                from ..core.services import services

                # Now, and not in on_store, which runs later: nodes after the loader must already
                # get what is lent, while the pool keeps the model as it was loaded.
                services().memory.keep_outputs(context.cache_key_hash, parts, value.outputs)
                return False
            return True

        async def on_lookup(self, context: Any) -> Any:
            from ..core.services import services

            outputs = services().memory.kept_outputs(
                context.cache_key_hash, PARTS[context.class_type]
            )
            return None if outputs is None else caching.CacheValue(outputs=outputs)

        async def on_store(self, context: Any, value: Any) -> None:
            pass  # see should_cache

        def on_prompt_end(self, prompt_id: str) -> None:
            from ..core.services import services

            services().memory.settle_pool()

    return StockLoaderCache()
