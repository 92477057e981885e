// A button on PromptAnalyzer that lists the models installed in Ollama, when it is pressed and at
// no other time. The name is the plain value of ollama_model; nothing depends on this file.
import { api } from "/scripts/api.js";
import { app } from "/scripts/app.js";

function tell(detail) {
  app.extensionManager?.toast?.add({ severity: "warn", summary: "Ollama", detail, life: 10000 });
}

async function installed() {
  let response, answer;
  try {
    response = await api.fetchApi("/intelligent_generation/ollama/models");
    answer = await response.json();
  } catch {
    tell("ComfyUI did not answer as expected. Is it still running?");
    return [];
  }
  if (!response.ok) tell(answer.error);
  else if (!answer.length) tell("Ollama has no model. `ollama pull llama3.2:3b`, for example, installs one.");
  return response.ok ? answer : [];
}

function set(node, name, value) {
  const widget = node.widgets.find((w) => w.name === name);
  if (!widget) return;
  widget.value = value;
  widget.callback?.(value);
}

async function choose(node, event) {
  const names = await installed();
  if (!names.length) return;
  new window.LiteGraph.ContextMenu(names, {
    event,
    callback: (name) => {
      set(node, "ollama_model", name);
      set(node, "analyzer", "Ollama"); // a model chosen is a model to use
      node.setDirtyCanvas(true, true);
    },
  });
}

app.registerExtension({
  name: "intelligent_generation.ollama",
  nodeCreated(node) {
    if (node.comfyClass !== "PromptAnalyzer") return;
    let asking = false;
    const button = node.addWidget("button", "list Ollama models", null, async (...args) => {
      if (asking) return; // one that cannot be reached takes seconds
      asking = true;
      try {
        await choose(node, args.find((arg) => arg instanceof Event) ?? window.event);
      } finally {
        asking = false;
      }
    });
    // Neither in the prompt nor in the saved workflow.
    button.options = { ...button.options, serialize: false };
    button.serialize = false;
  },
});
