// What the parts of the demonstration page share: elements, figures in words, and problems.

/** The element of the page with an id. */
export const element = (id) => document.getElementById(id);

/** An element with properties and children, which are elements or texts. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Milliseconds in words. */
export const duration = (ms) => (ms < 10 ? `${ms.toFixed(2)} ms` : `${ms.toFixed(0)} ms`);

/** The middle of numbers in order. */
export const median = (numbers) => [...numbers].sort((a, b) => a - b)[numbers.length >> 1];

/** Takes away what `showProblem` showed. */
export const clearProblem = () => (element("problem").hidden = true);

/** Shows what went wrong; of a device that was lost, with a button to get another. */
export function showProblem(error, session = undefined) {
  const box = element("problem");
  box.hidden = false;
  box.replaceChildren(error.message);
  if (session && error.code === "SMELT_DEVICE_LOST") {
    const again = make("button", { textContent: "Restart" });
    again.addEventListener("click", async () => {
      again.disabled = true;
      try {
        await session.restart();
        clearProblem();
      } catch (next) {
        showProblem(next, session);
      }
    });
    box.append(" ", again);
  }
}
