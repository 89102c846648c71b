"""Compiled models served over http, and Chromium to run them in."""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from node_process import NodeProcess

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which(
    "google-chrome")


class Server:
    """Serves `folder` at `url`; counts the `requests` for each path."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.requests: Counter[str] = Counter()
        outer = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                outer.requests[self.path] += 1
                super().do_GET()

        self.http = http.server.ThreadingHTTPServer(
            ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of a folder that tests put models into; blank.html is an empty page."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "blank.html").write_text("<!doctype html><title>test</title>")
    server = Server(folder)
    yield server
    server.close()


@pytest.fixture(scope="session")
def chromium() -> Iterator[NodeProcess]:
    if CHROMIUM is None:
        pytest.skip("needs chromium")
    process = NodeProcess("chromium.mjs", CHROMIUM=CHROMIUM)
    yield process
    process.close()


@pytest.fixture(scope="session")
def in_page(chromium: NodeProcess, server: Server) -> Callable[..., Any]:
    """in_page(folder, code): what code, the body of an async function on a blank page, returns.
    It sees `createSession` of the artifact at `folder` of the server, `base`, the folder's URL, and
    `refusal(promise)`, [code, message] of a SmeltError."""

    def run(folder: str, code: str, webgpu: bool = True) -> Any:
        program = f"""
            const base = {json.dumps(f"{server.url}{folder}/")};
            const smelt = await import(base + "session.mjs");
            const {{ createSession, SmeltError }} = smelt;
            const refusal = (promise) => promise.then(() => null, (error) => {{
                if (!(error instanceof SmeltError)) throw error;
                return [error.code, error.message];
            }});
            const result = await (async () => {{ {code} }})();
            return JSON.stringify(result ?? null, (_, x) =>
                typeof x === "bigint" ? String(x) : ArrayBuffer.isView(x) ? [...x] : x);"""
        text = chromium.ask(webgpu=webgpu, url=server.url + "blank.html", script=f"""
            return page.evaluate((code) => new (async () => {{}}).constructor(code)(),
                                 {json.dumps(program)});""")
        return json.loads(text)

    return run
