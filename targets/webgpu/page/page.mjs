// The demonstration page of a compiled model: a canvas to draw on for classifiers of small pictures
// in one channel, else a table to run the model on random inputs. Text of the model gets into the
// page as text only.

import { createSession } from "./session.mjs";
import { pictureClassifier, showDrawing } from "./drawing.mjs";
import { element, showProblem } from "./elements.mjs";
import { showTrial } from "./trial.mjs";

function showBackend(session) {
  element("backend").textContent = session.backend === "webgpu" ? `WebGPU · ${session.adapter}`
    : "WebAssembly";
  if (session.fallbackReason) element("backend").title = session.fallbackReason;
}

async function start() {
  try {
    const session = await createSession(new URL(".", import.meta.url), {
      onProgress: (loaded, total) => {
        element("progress").value = total ? loaded / total : 1;
        element("loaded").textContent = `Loading the model: ${(loaded / 1024).toFixed(0)} of ` +
          `${(total / 1024).toFixed(0)} KiB`;
      },
    });
    const classifier = pictureClassifier(session);
    const thing = classifier?.output.shape.at(-1) === 10 ? "digit" : "picture";
    const title = classifier ? `Draw a ${thing}` : session.name;
    element("title").textContent = document.title = title;
    showBackend(session);
    element("loading").hidden = true;
    element("main").hidden = false;
    await (classifier ? showDrawing(element("main"), session, classifier)
      : showTrial(element("main"), session));
  } catch (error) {
    element("loading").hidden = true;
    showProblem(error);
  }
}

await start();
