"""The pack in ComfyUI's own frontend, in a real browser."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import intelligent_generation
import pytest
from intelligent_generation.scripts.comfyui import ComfyUI
from intelligent_generation.tests.services.ollama import OllamaServer
from intelligent_generation.tests.services.server import DROP

ROOT = Path(intelligent_generation.__path__[0])
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
LOADED = "() => window.app?.graph && document.querySelector('canvas')"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield launched
        launched.close()


@pytest.fixture
def page(browser, comfyui: ComfyUI) -> Iterator:
    context = browser.new_context(viewport={"width": 1600, "height": 1000})
    opened = context.new_page()
    opened.problems = []
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.goto(comfyui.url)
    opened.wait_for_function(LOADED, timeout=120_000)
    yield opened
    context.close()


def load(page, name: str) -> None:
    workflow = json.loads((ROOT / "workflows" / name).read_text(encoding="utf-8"))
    page.evaluate("async (workflow) => { await window.app.loadGraphData(workflow); }", workflow)


def test_every_bundled_workflow_opens_without_a_problem(page) -> None:
    for path in sorted((ROOT / "workflows").glob("*.json")):
        load(page, path.name)
        expected = json.loads(path.read_text(encoding="utf-8"))["nodes"]
        kinds = page.evaluate("() => window.app.graph.nodes.map(n => [n.type, !!n.has_errors])")
        assert sorted(kind for kind, _ in kinds) == sorted(node["type"] for node in expected)
        assert not any(wrong for _, wrong in kinds), path.name
    assert page.problems == []


def test_the_editors_widgets_carry_the_workflows_values(page) -> None:
    load(page, "auto.json")
    values = page.evaluate(
        """() => Object.fromEntries(window.app.graph.nodes.map(
            n => [n.type, Object.fromEntries((n.widgets ?? []).map(w => [w.name, w.value]))]))"""
    )
    assert values["PromptAnalyzer"]["prompt"] == "a lighthouse at dusk, watercolor"
    assert values["IntelligentSampler"]["seed"] == -1
    assert values["IntelligentSampler"]["mode"] == "AUTO"
    assert values["ParameterOptimizer"]["cfg"] == -1
    assert values["FeedbackRecorder"]["rating"] == 0


def test_a_page_with_the_nodes_has_the_embedding_model_opened_once(page) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    with page.expect_response("**/catalog/meaning") as answer:
        load(page, "auto.json")
    assert answer.value.json()["state"] != "not started"
    load(page, "auto.json")
    assert sum("/catalog/meaning" in url for url in asked) == 1


def run_auto(page, prompt: str) -> str:
    """Run the AUTO workflow on a small image and wait for its explanation."""
    load(page, "auto.json")
    page.evaluate(
        """(prompt) => {
            const set = (type, name, value) => {
                const node = window.app.graph.nodes.find(n => n.type === type);
                node.widgets.find(w => w.name === name).value = value;
            };
            set("HubModelLoader", "model", "checkpoints/small-sd15.safetensors");
            set("PromptAnalyzer", "prompt", prompt);
            set("ParameterOptimizer", "width", 64);
            set("ParameterOptimizer", "height", 64);
            set("ParameterOptimizer", "steps", 2);
            window.app.queuePrompt(0);
        }""",
        prompt,
    )
    shown = """() => window.app.graph.nodes.find(n => n.type === "IntelligentSampler")
        .widgets.find(w => w.name === "explanation")?.value"""
    page.wait_for_function(shown, timeout=120_000)
    return page.evaluate(shown)


def test_run_shows_the_explanation_on_the_node(page) -> None:
    text = run_auto(page, "a lighthouse seen by a browser, watercolor")
    assert text.startswith("AUTO: small-sd15.safetensors (sd15)")
    (title,) = re.findall(r"^LoRA (.+) at [\d.]+:", text, re.MULTILINE)[:1]
    # What is shown is neither saved with the workflow nor sent with the prompt.
    assert title not in page.evaluate("() => JSON.stringify(window.app.graph.serialize())")
    assert title not in page.evaluate(
        "async () => JSON.stringify((await window.app.graphToPrompt()).output)"
    )
    assert page.problems == []


def test_nodes_2_show_the_explanation_and_no_preview_beside_the_image(page) -> None:
    setting = "(on) => window.app.extensionManager.setting.set('Comfy.VueNodes.Enabled', on)"
    page.evaluate(setting, True)
    try:
        text = run_auto(page, "a lighthouse seen in nodes 2.0, watercolor")
        area = page.locator("[data-node-id] textarea[aria-label=explanation]")
        area.first.wait_for()
        assert text in [one.input_value() for one in area.all()]
        image = page.locator("[data-node-id] img")
        image.first.wait_for()
        assert not any("blob:" in one.get_attribute("src") for one in image.all())
    finally:
        page.evaluate(setting, False)


def test_help_pages_and_templates_are_served(page, comfyui: ComfyUI) -> None:
    extension = "intelligent-generation"
    templates = page.evaluate("async () => (await fetch('/api/workflow_templates')).json()")
    assert {"auto", "loras_for_any_graph", "manual"} <= set(templates[extension])
    for node in ("IntelligentSampler", "HubModelLoader"):
        status = page.evaluate(
            "async (url) => (await fetch(url)).status",
            f"/extensions/{extension}/docs/{node}.md",
        )
        assert status == 200
    words = page.evaluate("async () => (await fetch('/api/i18n')).json()")
    assert words["es"]["nodeDefs"]["IntelligentSampler"]["display_name"]


def test_the_ollama_button_lists_models_sets_the_node_and_says_what_is_wrong(
    page, ollama: OllamaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.evaluate(
        """() => {
            window.app.graph.clear();
            const node = window.LiteGraph.createNode("PromptAnalyzer");
            window.app.graph.add(node);
            const button = node.widgets.find(w => w.type === "button");
            window.press = () => button.callback(new MouseEvent("click"));
        }"""
    )
    values = """() => Object.fromEntries(
        window.app.graph.nodes[0].widgets.map(w => [w.name, w.value]))"""
    page.evaluate("() => window.press()")
    page.locator(".litecontextmenu").get_by_text("other:3b", exact=True).click()
    chosen = page.evaluate(values)
    assert (chosen["analyzer"], chosen["ollama_model"]) == ("Ollama", "other:3b")
    ollama.fail(DROP, path="/api/tags")
    page.evaluate("() => window.press()")
    page.get_by_text("does not speak Ollama's protocol").wait_for()
    monkeypatch.setattr(ollama, "models", [])
    page.evaluate("() => window.press()")
    page.get_by_text("Ollama has no model").wait_for()
    assert page.evaluate(values)["ollama_model"] == "other:3b"
    assert page.problems == []
