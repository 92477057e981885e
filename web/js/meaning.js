// Has the embedding model opened as soon as a page shows a node that uses it, while a prompt is
// still being typed. A prompt that comes earlier, or by API, opens it itself.
import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

const NODES = new Set(["PromptAnalyzer", "LoRARecommender"]);
let asked = false;

app.registerExtension({
  name: "intelligent_generation.meaning",
  nodeCreated(node) {
    if (asked || !NODES.has(node.comfyClass)) return;
    asked = true;
    const request = { method: "POST", headers: { "Content-Type": "application/json" }, body: "{}" };
    // Nothing is lost where it fails.
    api.fetchApi("/intelligent_generation/catalog/meaning", request).catch(() => {});
  },
});
