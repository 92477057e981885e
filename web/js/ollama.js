// A button on PromptAnalyzer that lists the models installed in Ollama, when it is pressed and at
// no other time. The name is the plain value of ollama_model; nothing depends on this file.
import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

async function choose(node, event) {
  const response = await api.fetchApi("/intelligent_generation/ollama/models");
  const answer = await response.json();
  if (!response.ok) {
    app.extensionManager?.toast?.add({ severity: "warn", summary: "Ollama", detail: answer.error, life: 10000 });
    return;
  }
  const widget = node.widgets.find((w) => w.name === "ollama_model");
  new window.LiteGraph.ContextMenu(answer.length ? answer : ["(no model is installed)"], {
    event,
    callback: (name) => {
      if (!answer.includes(name)) return;
      widget.value = name;
      widget.callback?.(name);
      node.setDirtyCanvas(true, true);
    },
  });
}

app.registerExtension({
  name: "intelligent_generation.ollama",
  nodeCreated(node) {
    if (node.comfyClass !== "PromptAnalyzer") return;
    const button = node.addWidget("button", "list Ollama models", null, (...args) => {
      choose(node, args.find((arg) => arg instanceof Event) ?? window.event);
    });
    // Neither in the prompt nor in the saved workflow.
    button.options = { ...button.options, serialize: false };
    button.serialize = false;
  },
});
