// Shows on the output nodes what they did: the explanation of a generation, the result of a
// rating, and the saved image in place of its last live preview. The text is also the nodes'
// plain output; nothing depends on this file.
import { app } from "/scripts/app.js";

const NODES = new Set(["IntelligentSampler", "FeedbackRecorder"]);
const WIDGET = "explanation";

function show(node, text) {
  let widget = node.widgets?.find((w) => w.name === WIDGET);
  if (!widget) {
    const area = document.createElement("textarea");
    area.readOnly = true;
    area.className = "comfy-multiline-input";
    // Sized by the canvas in the classic design; in Nodes 2.0 by these.
    Object.assign(area.style, { fontSize: "12px", width: "100%", height: "100%", minHeight: "160px" });
    area.setAttribute("aria-label", "explanation");
    area.placeholder = "After a run: what was done, and why.";
    // A type of our own: a known one would be drawn as a one-line input in Nodes 2.0.
    widget = node.addDOMWidget(WIDGET, "intelligent_generation.explanation", area, {
      getValue: () => area.value,
      setValue: (value) => {
        area.value = value;
      },
      getMinHeight: () => 200,
      serialize: false,
      hideOnZoom: true,
    });
    // Neither in the prompt (above) nor in the saved workflow.
    widget.serialize = false;
    const [width, height] = node.computeSize();
    node.setSize([Math.max(node.size[0], width), Math.max(node.size[1], height)]);
  }
  widget.value = text;
}

// The frontend shows a node's live preview before its saved image, or below it, for as long as it
// has one. Nodes 2.0 looks at the store's copy.
function dropPreview(node) {
  const key = node.graph?.isRootGraph === false ? `${node.graph.id}:${node.id}` : `${node.id}`;
  const vue = document.querySelector("#vue-app")?.__vue_app__;
  const store = vue?.config?.globalProperties?.$pinia?._s?.get("nodeOutput");
  if (store?.nodePreviewImages) delete store.nodePreviewImages[key];
  if (app.nodePreviewImages) delete app.nodePreviewImages[key];
}

app.registerExtension({
  name: "intelligent_generation.explanation",
  nodeCreated(node) {
    // Nodes 2.0 does not draw a widget that is added beside an image.
    if (NODES.has(node.comfyClass)) show(node, "");
  },
  beforeRegisterNodeDef(nodeType, nodeData) {
    if (!NODES.has(nodeData.name)) return;
    const onExecuted = nodeType.prototype.onExecuted;
    nodeType.prototype.onExecuted = function (output) {
      onExecuted?.apply(this, arguments);
      if (output?.images?.length) dropPreview(this);
      if (output?.text?.length) show(this, output.text.join("\n"));
    };
  },
});
