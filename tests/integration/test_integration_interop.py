"""Every part is useful alone: beside stock nodes, other packs, split files and API callers."""

from __future__ import annotations

import io

import numpy as np
import pytest
from intelligent_generation.scripts.comfyui import Client, ComfyUI, PromptFailedError
from PIL import Image


def pixels(client: Client, run) -> np.ndarray:
    (image,) = run.images()
    return np.asarray(Image.open(io.BytesIO(client.view(image))).convert("RGB"))


def node(class_type: str, **inputs):
    return {"class_type": class_type, "inputs": inputs}


def stock_tail(graph, model, clip, positive, sampling):
    """Stock nodes that finish a graph: text encoders, KSampler, VAEDecode, SaveImage."""
    graph["positive"] = node("CLIPTextEncode", text=positive, clip=clip)
    graph["negative"] = node("CLIPTextEncode", text="", clip=clip)
    graph["latent"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph["ksampler"] = node(
        "KSampler", model=model, positive=["positive", 0], negative=["negative", 0],
        latent_image=["latent", 0], seed=7, denoise=1.0, **sampling,
    )  # fmt: skip
    graph["decode"] = node("VAEDecode", samples=["ksampler", 0], vae=["loader", 2])
    graph["save"] = node("SaveImage", images=["decode", 0], filename_prefix="stock")
    return graph


PLAIN = {"steps": 2, "cfg": 5.0, "sampler_name": "euler", "scheduler": "normal"}
FROM_OPTIMIZER = {
    "steps": ["optimizer", 1],
    "cfg": ["optimizer", 2],
    "sampler_name": ["optimizer", 3],
    "scheduler": ["optimizer", 4],
}


def without(graph, *names):
    return {key: value for key, value in graph.items() if key not in names}


def test_the_optimizers_plain_outputs_fit_ksampler(client: Client, auto_graph, record_of) -> None:
    graph = auto_graph("plain outputs", recommender={"max_loras": 0})
    ours = client.run(graph)
    text = record_of(ours).plan.loras.segments[0]
    stock = stock_tail(
        without(graph, "sampler", "feedback"),
        ["loader", 0], ["loader", 1], text, FROM_OPTIMIZER,
    )  # fmt: skip
    stock["latent"]["inputs"] = {
        "width": ["optimizer", 5], "height": ["optimizer", 6], "batch_size": ["optimizer", 7],
    }  # fmt: skip
    assert np.array_equal(pixels(client, ours), pixels(client, client.run(stock)))


def test_the_optimizers_plain_outputs_fit_the_custom_sampler_nodes(
    client: Client, auto_graph, record_of
) -> None:
    graph = auto_graph("custom sampler", recommender={"max_loras": 0})
    ours = client.run(graph)
    text = record_of(ours).plan.loras.segments[0]
    stock = stock_tail(
        without(graph, "sampler", "feedback"), ["loader", 0], ["loader", 1], text, PLAIN
    )
    stock["select"] = node("KSamplerSelect", sampler_name=["optimizer", 3])
    stock["sigmas"] = node(
        "BasicScheduler", model=["loader", 0], scheduler=["optimizer", 4],
        steps=["optimizer", 1], denoise=1.0,
    )  # fmt: skip
    stock["ksampler"] = node(
        "SamplerCustom", model=["loader", 0], add_noise=True, noise_seed=7, cfg=["optimizer", 2],
        positive=["positive", 0], negative=["negative", 0], sampler=["select", 0],
        sigmas=["sigmas", 0], latent_image=["latent", 0],
    )  # fmt: skip
    assert np.array_equal(pixels(client, ours), pixels(client, client.run(stock)))


def test_a_plain_model_does_wherever_model_info_does(client: Client, auto_graph, record_of) -> None:
    graph = auto_graph("watercolor lighthouse")
    graph["stock"] = node("CheckpointLoaderSimple", ckpt_name="small-sd15.safetensors")
    graph["recommender"]["inputs"]["model_info"] = ["stock", 0]
    graph["optimizer"]["inputs"]["model_info"] = ["stock", 0]
    graph["sampler"]["inputs"].update(model=["stock", 0], clip=["stock", 1], vae=["stock", 2])
    run = client.run(without(graph, "loader"))
    record = record_of(run)
    assert record.plan.model.family == "sd15"
    assert record.plan.loras.loras
    # Our own loader gives the same image.
    ours = auto_graph("watercolor lighthouse")
    assert np.array_equal(pixels(client, run), pixels(client, client.run(ours)))


def test_the_fetcher_applies_the_plan_to_any_graph_once(
    client: Client, auto_graph, stock_graph, record_of
) -> None:
    graph = auto_graph("a lighthouse at dusk, watercolor")
    record = record_of(client.run(graph))
    names = [(x.file.name, x.model_strength, x.clip_strength) for x in record.plan.loras.loras]
    (text,) = record.plan.loras.segments
    graph["fetcher"] = node(
        "CivitAILoRAFetcher",
        lora_plan=["recommender", 0], model=["loader", 0], clip=["loader", 1],
    )  # fmt: skip
    through_fetcher = stock_tail(
        without(graph, "sampler", "feedback", "optimizer", "memory"),
        ["fetcher", 2], ["fetcher", 3], ["recommender", 2], PLAIN,
    )  # fmt: skip
    chain = stock_graph(text, "", loras=names, seed=7)
    expected = pixels(client, client.run(chain))
    assert np.array_equal(pixels(client, client.run(through_fetcher)), expected)

    # The sampler gets the plan as well: its LoRAs are not applied a second time.
    both = dict(graph)
    both["sampler"]["inputs"].update(model=["fetcher", 2], clip=["fetcher", 3])
    run = client.run(both)
    again = record_of(run)
    assert np.array_equal(pixels(client, run), pixels(client, client.run(auto_graph(
        "a lighthouse at dusk, watercolor"
    ))))  # fmt: skip
    assert again.plan.model.carried_patches == 0


def test_a_lora_stack_goes_in_and_out(client: Client, auto_graph, stock_graph, record_of) -> None:
    graph = auto_graph("a quiet harbour <lora:dusk-light:0.5:0.25>", recommender={"max_loras": 0})
    graph["fetcher"] = node(
        "CivitAILoRAFetcher",
        lora_stack=["recommender", 1], model=["loader", 0], clip=["loader", 1],
    )  # fmt: skip
    (text,) = record_of(client.run(without(graph, "fetcher"))).plan.loras.segments
    stacked = stock_tail(
        without(graph, "sampler", "feedback", "optimizer", "memory"),
        ["fetcher", 2], ["fetcher", 3], text, PLAIN,
    )  # fmt: skip
    loras = [("dusk-light.safetensors", 0.5, 0.25)]
    chain = stock_graph(text, "", loras=loras, seed=7)
    assert np.array_equal(pixels(client, client.run(stacked)), pixels(client, client.run(chain)))


def test_a_stack_through_the_fetcher_leaves_the_prompt_as_it_is(
    client: Client, auto_graph, record_of
) -> None:
    graph = auto_graph("a heron <lora:misty_mountains:0.4>", recommender={"max_loras": 0})
    other = auto_graph("b <lora:dusk-light:0.5>", recommender={"max_loras": 0})
    graph["analyzer-b"], graph["recommender-b"] = other["analyzer"], other["recommender"]
    graph["recommender-b"]["inputs"]["analysis"] = ["analyzer-b", 0]
    graph["fetcher"] = node("CivitAILoRAFetcher", lora_stack=["recommender-b", 1])
    graph["sampler"]["inputs"]["lora_plan"] = ["fetcher", 0]
    record = record_of(client.run(graph))
    assert record.plan.loras.segments[0].startswith("a heron")
    names = [item.file.name for item in record.applied]
    assert names == ["misty_mountains.safetensors", "dusk-light.safetensors"]

    graph["analyzer"]["inputs"]["prompt"] = "a heron <lora:dusk-light:0.9>"
    with pytest.raises(PromptFailedError, match="in the prompt and in the LORA_STACK"):
        client.run(graph)

    graph["sampler"]["inputs"]["lora_plan"] = ["recommender-b", 0]
    with pytest.raises(PromptFailedError, match="another prompt"):
        client.run(graph)


def test_model_and_clip_that_carry_other_loras_than_the_plan_are_refused(
    client: Client, auto_graph
) -> None:
    graph = auto_graph("a lighthouse at dusk, watercolor")
    graph["fetcher"] = node(
        "CivitAILoRAFetcher",
        lora_plan=["recommender", 0], model=["loader", 0], clip=["loader", 1],
    )  # fmt: skip
    graph["sampler"]["inputs"]["model"] = ["fetcher", 2]
    with pytest.raises(PromptFailedError, match="MODEL, CLIP and LoRA plan of one"):
        client.run(graph)  # CLIP comes from the loader
    graph["sampler"]["inputs"]["clip"] = ["fetcher", 3]
    del graph["sampler"]["inputs"]["lora_plan"]
    with pytest.raises(PromptFailedError, match="MODEL, CLIP and LoRA plan of one"):
        client.run(graph)  # the plan is not wired on
    graph["fetcher"]["inputs"].pop("model")
    with pytest.raises(PromptFailedError, match="Wire MODEL"):
        client.run(graph)


def test_a_lora_named_twice_at_two_strengths_is_refused(client: Client, auto_graph) -> None:
    with pytest.raises(PromptFailedError, match="named twice"):
        client.run(auto_graph("a <lora:dusk-light:0.5> <lora:dusk-light:0.8>"))


def test_changes_of_other_nodes_are_told_and_not_replayed(
    client: Client, auto_graph, record_of
) -> None:
    graph = auto_graph("changed elsewhere")
    graph["skip"] = node("CLIPSetLastLayer", clip=["loader", 1], stop_at_clip_layer=-2)
    graph["rescale"] = node("RescaleCFG", model=["loader", 0], multiplier=0.7)
    graph["sampler"]["inputs"].update(model=["rescale", 0], clip=["skip", 0])
    record = record_of(client.run(graph))
    assert record.plan.model.carried_patches >= 2
    assert "workflow in the PNG" in record.explanation
    plain = record_of(client.run(auto_graph("changed elsewhere")))
    assert plain.plan.model.carried_patches == 0


def test_a_plan_run_with_another_vae_says_so(
    client: Client, add_model, auto_graph, record_of
) -> None:
    record = record_of(client.run(auto_graph("another vae")))
    graph = auto_graph("x", sampler={"mode": "MANUAL", "plan": record.plan.to_json()})
    graph["loader"]["inputs"]["vae"] = add_model("small-taesd.safetensors")
    again = record_of(client.run(graph))
    assert any("The image will differ" in notice.message for notice in again.notices)
    graph["loader"]["inputs"]["vae"] = "automatic"
    same = record_of(client.run(graph))
    assert not any("The image will differ" in notice.message for notice in same.notices)


def test_what_is_no_text_encoder_is_refused(client: Client, add_model, comfyui, auto_graph) -> None:
    vae = comfyui.base.models("vae") / add_model("small-taesd.safetensors")
    wrong = comfyui.base.models("text_encoders") / "a vae.safetensors"
    wrong.write_bytes(vae.read_bytes())
    graph = auto_graph("x")
    graph["loader"]["inputs"].update(
        model=f"diffusion_models/{add_model('small-sd15-unet.safetensors')}",
        text_encoder_1=wrong.name,
    )
    try:
        with pytest.raises(PromptFailedError, match="not a text encoder"):
            client.run(graph)
    finally:
        wrong.unlink()


def test_the_fetchers_model_output_without_a_model_says_what_to_wire(
    client: Client, auto_graph
) -> None:
    graph = auto_graph("x")
    graph["fetcher"] = node("CivitAILoRAFetcher", lora_plan=["recommender", 0])
    graph["sampler"]["inputs"]["model"] = ["fetcher", 2]
    with pytest.raises(PromptFailedError, match="MODEL input is wired"):
        client.run(graph)


def test_the_sampler_makes_the_plans_that_are_not_wired(
    client: Client, auto_graph, record_of
) -> None:
    graph = auto_graph("a boat <lora:dusk-light:0.7>")
    for name in ("lora_plan", "sampling_plan", "memory_plan"):
        del graph["sampler"]["inputs"][name]
    graph["sampler"]["inputs"].update(
        mode="MANUAL", plan='{"sampling": {"width": 64, "height": 64, "steps": 2}}'
    )
    record = record_of(client.run(without(graph, "recommender", "optimizer", "memory")))
    assert [lora.file.name for lora in record.plan.loras.loras] == ["dusk-light.safetensors"]
    assert record.plan.sampling.strategy


def test_split_files_load_sample_and_replay_like_the_checkpoint(
    client: Client, add_model, auto_graph, record_of
) -> None:
    whole = pixels(client, client.run(auto_graph("split files")))
    graph = auto_graph("split files")
    graph["loader"]["inputs"].update(
        model=f"diffusion_models/{add_model('small-sd15-unet.safetensors')}",
        text_encoder_1=add_model("small-clip-l.safetensors"),
        vae=add_model("small-taesd.safetensors"),
    )
    run = client.run(graph)
    assert np.array_equal(whole, pixels(client, run))
    record = record_of(run)
    folders = {file.folder for file in record.plan.model.files}
    assert folders == {"diffusion_models", "text_encoders", "vae"}
    prompt = client.get(f"/intelligent_generation/generations/{record.id}/prompt").json()["prompt"]
    assert np.array_equal(whole, pixels(client, client.run(prompt)))


def test_a_model_without_text_encoder_says_what_to_choose(
    client: Client, add_model, auto_graph
) -> None:
    graph = auto_graph("no text encoder")
    graph["loader"]["inputs"]["model"] = (
        f"diffusion_models/{add_model('small-sd15-unet.safetensors')}"
    )
    with pytest.raises(PromptFailedError, match="text_encoder_1"):
        client.run(graph)


def test_sd3_takes_a_shift_as_the_stock_node_does(
    client: Client, add_model, auto_graph, stock_graph, record_of
) -> None:
    graph = auto_graph("shifted", recommender={"max_loras": 0}, optimizer={"shift": 1.5})
    graph["loader"]["inputs"].update(
        model=f"diffusion_models/{add_model('small-sd3.safetensors')}",
        text_encoder_1=add_model("small-clip-l.safetensors"),
        vae=add_model("small-taesd3.safetensors"),
    )
    run = client.run(graph)
    record = record_of(run)
    assert record.plan.model.family in ("sd3", "sd35")
    sampling = record.plan.sampling
    twin = stock_graph(
        "shifted", "", steps=sampling.steps, cfg=sampling.cfg, sampler=sampling.sampler,
        scheduler=sampling.scheduler, seed=7,
    )  # fmt: skip
    twin["unet"] = node("UNETLoader", unet_name="small-sd3.safetensors", weight_dtype="default")
    twin["shift"] = node("ModelSamplingSD3", model=["unet", 0], shift=1.5)
    twin["clip"] = node("CLIPLoader", clip_name="small-clip-l.safetensors", type="sd3")
    twin["vae"] = node("VAELoader", vae_name="small-taesd3.safetensors")
    twin["latent"]["class_type"] = "EmptySD3LatentImage"
    twin["sampler"]["inputs"]["model"] = ["shift", 0]
    for name in ("positive", "negative"):
        twin[name]["inputs"]["clip"] = ["clip", 0]
    twin["decode"]["inputs"]["vae"] = ["vae", 0]
    assert np.array_equal(
        pixels(client, run), pixels(client, client.run(without(twin, "checkpoint")))
    )


def test_ids_schemas_and_help_are_what_comfyui_expects(client: Client, comfyui: ComfyUI) -> None:
    info = client.object_info()
    for name in (
        "HubModelLoader", "CivitAILoRAFetcher", "PromptAnalyzer", "LoRARecommender",
        "ParameterOptimizer", "MemoryStrategy", "IntelligentSampler", "FeedbackRecorder",
    ):  # fmt: skip
        assert info[name]["category"] == "intelligent generation"
        assert info[name]["description"] and info[name]["display_name"]
    assert info["IntelligentSampler"]["output_node"] and info["FeedbackRecorder"]["output_node"]
    outputs = dict(
        zip(info["ParameterOptimizer"]["output_name"], info["ParameterOptimizer"]["output"],
            strict=True)
    )  # fmt: skip
    assert outputs["sampler"] == outputs["scheduler"] == "*"
