"""PromptAnalyzer: text -> PromptAnalysis."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import CATEGORY, PromptAnalysisSocket

BUILT_IN = "built in"
OLLAMA = "Ollama"


class PromptAnalyzer(io.ComfyNode):
    """Reads a prompt: emphasis, LoRA tags, concepts, mood, intent, complexity."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PromptAnalyzer",
            display_name="Prompt Analyzer",
            category=CATEGORY,
            description="Reads what a prompt asks for. The text itself is kept as you wrote it; "
            "only <lora:…> tags are taken out and become your own choice of LoRA.",
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What you want to see: tags or prose, with (emphasis:1.2) and "
                    "<lora:name:0.8> if you like.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    tooltip="What you do not want to see. May stay empty.",
                ),
                io.Combo.Input(
                    "syntax",
                    options=["comfy", "a1111"],
                    default="comfy",
                    tooltip="comfy: the text goes to the encoder as it is. a1111: [x], nested "
                    "weights and BREAK are translated to ComfyUI's syntax.",
                ),
                io.Combo.Input(
                    "analyzer",
                    options=[BUILT_IN, OLLAMA],
                    default=BUILT_IN,
                    optional=True,
                    tooltip="Who finds concepts, mood and intent. Ollama: a language model of "
                    "yours; if it gives no usable answer, the built-in one steps in and a note "
                    "says so.",
                ),
                io.String.Input(
                    "ollama_model",
                    default="",
                    optional=True,
                    tooltip="A model installed in Ollama, such as llama3.2:3b. The button below "
                    "lists them.",
                ),
                io.Int.Input(
                    "keep_alive",
                    default=0,
                    min=-1,
                    max=86_400,
                    optional=True,
                    tooltip="Seconds that Ollama keeps the model loaded. 0 frees its memory before "
                    "sampling; more saves loading it again in a batch; -1 keeps it.",
                ),
                io.Float.Input(
                    "time_limit",
                    default=60.0,
                    min=1.0,
                    max=600.0,
                    step=1.0,
                    optional=True,
                    tooltip="Seconds that Ollama may take, loading of the model included.",
                ),
            ],
            outputs=[
                PromptAnalysisSocket.Output("analysis", display_name="analysis"),
                io.String.Output("text", display_name="prompt", tooltip="For a text encoder node."),
                io.String.Output("negative_text", display_name="negative prompt"),
                io.Float.Output("complexity", display_name="complexity", tooltip="0 to 1."),
                io.String.Output(
                    "summary", display_name="summary", tooltip="What was found, in words."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, analyzer: str | None = BUILT_IN, ollama_model: str | None = "",
                        **_: Any) -> bool | str:  # fmt: skip
        if analyzer == OLLAMA and ollama_model is not None and not ollama_model.strip():
            return (
                "analyzer is Ollama, but ollama_model is empty. Write the name of an installed "
                "model, such as llama3.2:3b; /intelligent_generation/ollama/models lists them."
            )
        return True

    @classmethod
    def fingerprint_inputs(
        cls, analyzer: str | None = BUILT_IN, ollama_model: str | None = "", **_: Any
    ) -> str:
        """Changes after a language model failed, so that it is asked again."""
        if analyzer == BUILT_IN:
            return ""
        from ..core.services import services

        return services().prompts.language_model_failures(ollama_model)

    @classmethod
    def execute(
        cls,
        prompt: str,
        negative_prompt: str,
        syntax: str,
        analyzer: str = BUILT_IN,
        ollama_model: str = "",
        keep_alive: int = 0,
        time_limit: float = 60.0,
    ) -> io.NodeOutput:
        from ..core.prompting import OllamaSettings, summarize
        from ..core.services import services

        settings = None
        if analyzer == OLLAMA:
            settings = OllamaSettings(ollama_model.strip(), keep_alive, time_limit)
        analysis = services().prompts.analyze(prompt, negative_prompt, syntax, settings)
        return io.NodeOutput(
            analysis,
            ", ".join(analysis.segments),
            ", ".join(analysis.negative_segments),
            analysis.complexity,
            summarize(analysis),
        )
