"""The page of --demo in headless Chromium."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_models import model_of

import smelt
from smelt.api import build
from smelt.errors import UsageError
from smelt.runtime.artifact import write_artifact

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples/digits/digits.onnx"
F32, I64 = TensorProto.FLOAT, TensorProto.INT64
MOST_BYTES = 300_000
WATCH = """
    const asked = [], said = [];
    page.on("request", (request) => asked.push(request.url()));
    page.on("console", (message) => said.push(message.text()));
"""
OVERFLOW = """await page.evaluate(() => document.documentElement.scrollWidth - innerWidth)"""


@pytest.fixture(scope="module")
def digits(server) -> str:
    """The folder of the digits model with its page, made by the command line."""
    folder = server.folder / "digits-page"
    done = command("compile", DIGITS, "--target", "webgpu", "--demo", "-o", folder)
    assert done.returncode == 0, done.stderr
    assert "http.server" in done.stdout
    return folder.name


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "smelt", *map(str, arguments)],
                          capture_output=True, text=True, cwd=Path(sys.executable).anchor)


def in_browser(chromium, server, folder: str, script: str, **how: Any) -> Any:
    how = {"webgpu": True, **how}
    return chromium.ask(url=f"{server.url}{folder}/index.html", script=WATCH + script, **how)


def test_a_digit_is_drawn_and_named(chromium, server, digits):
    shown = in_browser(chromium, server, digits, """
        await page.reload();
        await page.waitForSelector("#bars li");
        const example = await page.textContent("#class");
        await page.click("text=Clear");
        const { x, y, width } = await page.locator("#drawing").boundingBox();
        await page.mouse.move(x + width / 2, y + width * .2);
        await page.mouse.down();
        for (let k = 0; k <= 60; k++) { // a zero
            const turn = 2 * Math.PI * k / 60;
            await page.mouse.move(x + width * (.5 + .17 * Math.sin(turn)),
                                  y + width * (.5 - .3 * Math.cos(turn)));
        }
        await page.mouse.up();
        await page.waitForTimeout(300);
        const [seen, bars] = await page.evaluate(() => {
            const { data } = document.getElementById("seen").getContext("2d")
                .getImageData(0, 0, 8, 8);
            return [[...data].filter((_, k) => k % 4 === 0),
                [...document.querySelectorAll("#bars li .share")].map((e) => e.textContent)];
        });
        return { example, seen, bars, asked, said, class: await page.textContent("#class"),
                 badge: await page.textContent("#backend"), time: await page.textContent("#time"),
                 title: await page.title() };""")
    assert shown["example"] == "7" and shown["class"] == "0"
    assert shown["title"] == "Draw a digit" and "swiftshader" in shown["badge"].lower()
    assert shown["time"].endswith(" ms") and not shown["said"]
    assert shown["asked"] and all(url.startswith(server.url) for url in shown["asked"])
    # The picture is shown in 8 bits, shares with one decimal.
    with smelt.compile(DIGITS) as module:
        scores = module(np.array(shown["seen"], np.float32).reshape(1, 1, 8, 8) / 255)[0]
    bars = [float(text.removesuffix(" %")) / 100 for text in shown["bars"]]
    np.testing.assert_allclose(bars, scores, atol=0.03)


def test_it_fits_on_a_telephone_and_is_small(chromium, server, digits):
    over = in_browser(chromium, server, digits, f"""
        await page.waitForSelector("#bars li");
        return {OVERFLOW};""", width=360, height=700)
    assert over <= 0
    files = [p for p in (server.folder / digits).rglob("*") if p.is_file()]
    assert sum(p.stat().st_size for p in files) < MOST_BYTES


def test_a_lost_device_is_restarted_by_a_button(chromium, server, digits):
    text, after = in_browser(chromium, server, digits, """
        await page.addInitScript(() => {
            const open = GPUAdapter.prototype.requestDevice;
            GPUAdapter.prototype.requestDevice = async function (...given) {
                return (globalThis.lastDevice = await open.apply(this, given));
            };
        });
        await page.reload();
        await page.waitForSelector("#bars li");
        await page.evaluate(() => lastDevice.destroy());
        await page.selectOption("#range", "16");
        await page.waitForSelector("#problem button");
        const text = await page.textContent("#problem");
        await page.click("#problem button");
        await page.waitForSelector("#problem", { state: "hidden" });
        await page.selectOption("#range", "1");
        await page.waitForTimeout(300);
        return [text, await page.textContent("#class")];""")
    assert text.startswith("The graphics device was lost")
    assert after == "7"


def test_without_webgpu_the_page_says_so(chromium, server, digits):
    text = in_browser(chromium, server, digits, """
        await page.waitForSelector("#problem:not([hidden])");
        return page.textContent("#problem");""", webgpu=False)
    assert "WebGPU" in text and text.endswith(".")


def test_other_models_run_on_random_inputs(chromium, server):
    """Names of the model are text, whatever they look like."""
    name = '<img src="x" onerror="document.title = 1">'
    model = model_of([helper.make_node("Gather", [name, "i"], ["picked"], axis=0),
                      helper.make_node("Tanh", ["picked"], ["<b>y</b>"])],
                     {name: (F32, [4, 3]), "i": (I64, ["count"])},
                     {"<b>y</b>": (F32, ["count", 3])}, check=False)
    built = build(model, "webgpu", name="gather", options={"demo": "true"})
    write_artifact(server.folder / "trial", built.manifest, built.files)
    first, timed, problem, made, over = in_browser(chromium, server, "trial", f"""
        await page.waitForSelector("#results tr");
        const first = await page.textContent("#results");
        await page.fill("main input[type=number]", "5");
        await page.click("#often");
        await page.waitForSelector(".figure:nth-child(3)");
        const timed = await page.textContent("#results");
        await page.fill("main input[type=number]", "");
        await page.click("#run");
        await page.waitForSelector("#problem:not([hidden])");
        const problem = await page.textContent("#problem");
        await page.fill("main input[type=number]", "2");
        await page.click("#run");
        await page.waitForSelector("#problem", {{ state: "hidden" }});
        return [first, timed, problem, await page.locator("main img, main b").count(),
                {OVERFLOW}];""",
        width=360, height=700)
    assert "<b>y</b>" in first and "f32[1, 3]" in first and "f32[5, 3]" in timed
    assert "whole numbers" in problem
    assert made == 0 and over <= 0


def test_the_example_of_the_documentation(chromium, server, digits):
    (example,) = re.findall(r"^```html\n(.*?)^```", (ROOT / "docs/webgpu.md").read_text(),
                            re.S | re.M)
    (server.folder / "example.html").write_text(
        "<!doctype html>" + example.replace("./digits.smelt/", f"./{digits}/"))
    scores = chromium.ask(webgpu=True, url=f"{server.url}example.html", script="""
        await page.waitForFunction(() => document.getElementById("scores").textContent);
        return page.textContent("#scores");""")
    with smelt.compile(DIGITS) as module:
        want = module(np.zeros((1, 1, 8, 8), np.float32))[0]
    np.testing.assert_allclose([float(x) for x in scores.split(",")], want, atol=1e-4)


def test_pages_are_for_webgpu_and_say_which_pixels(tmp_path):
    done = command("compile", DIGITS, "--demo", "-o", tmp_path / "x")
    assert done.returncode != 0 and "--target webgpu" in done.stderr
    assert not (tmp_path / "x").exists()
    options = {"demo": "true", "pixels": "255"}
    assert build(DIGITS, "webgpu", options=options).manifest["options"]["pixels"] == 255
    with pytest.raises(UsageError, match="pixels is '7': use 1, 16 or 255"):
        build(DIGITS, "webgpu", options={"pixels": "7"})
