"""A ComfyUI node for the soak: how many ModelPatchers are alive. Put into custom_nodes."""

import gc

from comfy.model_patcher import ModelPatcher


class PatcherCount:
    RETURN_TYPES = ()
    FUNCTION = "count"
    CATEGORY = "benchmarks"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls):  # noqa: N802 (ComfyUI's name)
        return {"required": {"after": ("STRING", {"forceInput": True})}}

    def count(self, after):
        gc.collect()
        alive = sum(isinstance(one, ModelPatcher) for one in gc.get_objects())
        return {"ui": {"patchers": [alive]}}


NODE_CLASS_MAPPINGS = {"PatcherCount": PatcherCount}
