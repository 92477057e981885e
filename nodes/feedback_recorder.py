"""FeedbackRecorder: a rating for a Generation -> the learning database."""

from __future__ import annotations

from comfy_api.latest import io

from .sockets import CATEGORY, GenerationSocket


class FeedbackRecorder(io.ComfyNode):
    """Stores what a person thinks of a generation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="FeedbackRecorder",
            display_name="Feedback Recorder",
            category=CATEGORY,
            description="Rates an image from 1 to 5. Rating it again replaces the first rating.",
            is_output_node=True,
            inputs=[
                io.Int.Input(
                    "rating",
                    default=0,
                    min=0,
                    max=5,
                    tooltip="0: not rated, nothing is stored. 1 (bad) to 5 (just right). With a "
                    "random seed each run makes a new image: to rate one you have seen, give its "
                    "generation_id.",
                ),
                io.String.Input("comment", multiline=True, default=""),
                io.String.Input(
                    "generation_id",
                    default="",
                    tooltip="Which image. It beats the link; empty: the linked generation.",
                ),
                GenerationSocket.Input("generation", optional=True),
            ],
            outputs=[io.String.Output("status", display_name="status")],
        )

    @classmethod
    def execute(
        cls, rating: int, comment: str, generation_id: str, generation=None
    ) -> io.NodeOutput:
        from ..core.services import services

        linked = generation.id if generation is not None else None
        status = services().records.rate(generation_id.strip() or linked, rating, comment)
        return io.NodeOutput(status, ui={"text": [status]})
