// Shows what the output nodes say below their widgets: the explanation of a generation, the
// result of a rating. The text is also the nodes' plain output; nothing depends on this file.
import { app } from "/scripts/app.js";

const NODES = new Set(["IntelligentSampler", "FeedbackRecorder"]);
const WIDGET = "intelligent_generation.text";

function show(node, text) {
  let widget = node.widgets?.find((w) => w.name === WIDGET);
  if (!widget) {
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.className = "comfy-multiline-input";
    area.style.fontSize = "12px";
    area.setAttribute("aria-label", "explanation");
    widget = node.addDOMWidget(WIDGET, "text", area, {
      getValue: () => area.value,
      setValue: (value) => {
        area.value = value;
      },
      getMinHeight: () => 120,
      serialize: false,
      hideOnZoom: true,
    });
    // Neither in the prompt (above) nor in the saved workflow.
    widget.serialize = false;
    node.setSize?.([Math.max(node.size[0], 380), node.size[1] + 140]);
  }
  widget.value = text;
}

app.registerExtension({
  name: "intelligent_generation.explanation",
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.has(nodeData.name)) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.text?.length) show(this, output.text.join("\n"));
    };
  },
});
