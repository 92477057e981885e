"""PromptAnalyzer: text -> PromptAnalysis."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import CATEGORY, PromptAnalysisSocket


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
    def execute(cls, prompt: str, negative_prompt: str, syntax: str) -> io.NodeOutput:
        from ..core.prompting import analyze, summarize

        analysis = analyze(prompt, negative_prompt, syntax=syntax)  # type: ignore[arg-type]
        return io.NodeOutput(
            analysis,
            ", ".join(analysis.segments),
            ", ".join(analysis.negative_segments),
            analysis.complexity,
            summarize(analysis),
        )
