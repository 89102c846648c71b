// Answers questions, one line of JSON each, until there are no more.

import { createInterface } from "node:readline";

/** Calls `answer` with every question and prints what it resolves to. */
export async function answerLines(answer) {
  for await (const line of createInterface({ input: process.stdin })) {
    let text;
    try {
      text = JSON.stringify({ result: await answer(JSON.parse(line)) });
    } catch (error) {
      text = JSON.stringify({ error: error.stack ?? String(error) });
    }
    process.stdout.write(`${text}\n`);
  }
}

/** A module of the folder NODE_PACKAGES. */
export const fromPackages = (path) => import(new URL(path, process.env.NODE_PACKAGES));
