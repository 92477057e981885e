"""What ComfyUI sees: one node a file, each its schema and one call into core."""

from __future__ import annotations

import logging

from comfy_api.latest import ComfyExtension, io

from .civitai_lora_fetcher import CivitAILoRAFetcher
from .feedback_recorder import FeedbackRecorder
from .hub_model_loader import HubModelLoader
from .intelligent_sampler import IntelligentSampler
from .lora_recommender import LoRARecommender
from .memory_strategy import MemoryStrategy
from .parameter_optimizer import ParameterOptimizer
from .prompt_analyzer import PromptAnalyzer
from .routes import register_routes
from .stock_loader_cache import register_stock_loader_cache

log = logging.getLogger(__name__)

NODES: list[type[io.ComfyNode]] = [
    HubModelLoader,
    CivitAILoRAFetcher,
    PromptAnalyzer,
    LoRARecommender,
    ParameterOptimizer,
    MemoryStrategy,
    IntelligentSampler,
    FeedbackRecorder,
]


class IntelligentGenerationExtension(ComfyExtension):
    """The eight nodes and their HTTP routes."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        _report_taken_ids()
        register_routes()
        await register_stock_loader_cache()
        return NODES


def _report_taken_ids() -> None:
    from ..core import host

    for node in NODES:
        other = host.node_module(node.__name__)
        if other is not None:
            log.warning(
                "Intelligent Generation: a node called %s already exists (from %s); ComfyUI now "
                "uses ours. Remove the other pack if its workflows matter to you.",
                node.__name__,
                other,
            )
