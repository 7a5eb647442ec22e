"""Ways into the page beside dropping a picture: key, file, camera, paste, keys; as JSON."""

from __future__ import annotations

import json
import sys
from typing import Any

from playwright.sync_api import Page, sync_playwright

_CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
_PASTE = """url => {
  const bytes = Uint8Array.from(atob(url.split(",")[1]), letter => letter.charCodeAt(0));
  const data = new DataTransfer();
  data.items.add(new File([bytes], "p.png", { type: "image/png" }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, cancelable: true }));
}"""
# How many patches are clear from one frame to the next while their order is shown.
_REVEAL = """() => new Promise(resolve => {
  const path = document.getElementById("kept"), seen = [], all = path.getAttribute("d");
  document.getElementById("play").click();
  const look = () => {
    const now = path.getAttribute("d");
    seen.push([now.split("M").length - 1, all.startsWith(now)]);
    if (now === all && seen.length > 5) resolve(seen); else requestAnimationFrame(look);
  };
  requestAnimationFrame(look);
})"""
_REVEALED = "document.getElementById('caption').textContent.startsWith(`${shown.kept} `)"
_ASK_AND_STOP = """() => {
  document.getElementById("text").value = "And now?";
  document.getElementById("ask").requestSubmit();
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
}"""
_NUMBERS = """() => [...document.querySelectorAll("#numbers text")].map(text =>
  [Number(text.textContent), Number(text.getAttribute("x")), Number(text.getAttribute("y"))])"""


def main(chromium: str, url: str, key: str, picture: str) -> dict[str, Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", *_CAMERA]
        )
        try:
            context = browser.new_context(
                viewport={"width": 390, "height": 844}, color_scheme="light", permissions=["camera"]
            )
            return visit(context.new_page(), url, key, picture)
        finally:
            browser.close()


def visit(page: Page, url: str, key: str, picture: str) -> dict[str, Any]:
    complaints: list[str] = []
    bodies: list[Any] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda r: bodies.append(r.post_data_json) if r.method == "POST" else None)
    page.goto(url)
    found: dict[str, Any] = {"key": give_keys(page, key), "tab_stops": tab_stops(page)}
    page.set_input_files("#file", picture)
    page.wait_for_selector("#figure:not([hidden])")
    page.keyboard.type("What is this?")
    page.keyboard.press("Enter")
    settle(page, 1)
    found["answer_in_sight"] = in_sight(page, ".answer")
    until(page, _REVEALED)
    found["reveal"] = page.evaluate(_REVEAL)
    page.click("#number")
    found["numbers"] = page.evaluate(_NUMBERS)
    page.click("text=automatic")
    page.wait_for_selector(".runs tbody tr:nth-child(2)")
    page.focus("#slider")
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".runs tbody tr:nth-child(3)")
    settle(page, 1)
    found["automatic"] = page.locator("#share").inner_text()
    page.click("#camera")
    page.wait_for_selector("#camera-dialog[open]")
    until(page, "document.getElementById('video').videoWidth > 0")
    page.click("#shutter")
    page.wait_for_selector("#pending .thumb:nth-child(1)")
    found["camera_closed"] = not page.evaluate("document.getElementById('camera-dialog').open")
    page.evaluate(_PASTE, bodies[0]["messages"][0]["content"][0]["image_url"]["url"])
    page.wait_for_selector("#pending .thumb:nth-child(2)")
    page.fill("#text", "And these?")
    page.keyboard.press("Enter")
    settle(page, 2)
    page.evaluate(_ASK_AND_STOP)
    settle(page, 3)
    found["stopped"] = page.locator(".turn").nth(2).locator(".answer").inner_text()
    keeps = [body["keep"] for body in bodies]
    pictures = [json.dumps(body).count('"type": "image_url"') for body in bodies]
    return found | {"complaints": complaints, "keeps": keeps, "pictures": pictures}


def give_keys(page: Page, key: str) -> list[bool]:
    """Whether a wrong key is called wrong: before one is given, and after."""
    page.wait_for_selector("#key-dialog[open]")
    called = [page.locator("#key-wrong").is_visible()]
    page.keyboard.type("not-this-one")
    page.keyboard.press("Enter")
    page.wait_for_selector("#key-wrong:not([hidden])")
    called.append(page.locator("#key-wrong").is_visible())
    page.keyboard.type(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("#model:not(:empty)")
    return called


def tab_stops(page: Page) -> list[str]:
    """Ids of what the tabulator key reaches, in its order."""
    page.evaluate("document.activeElement.blur()")
    stops = []
    for _ in range(12):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id"))
    return stops


def until(page: Page, condition: str) -> None:
    """Wait for an expression; the page's policy keeps the browser from doing so by itself."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    raise TimeoutError(condition)


def settle(page: Page, turn: int) -> None:
    selector = f".turn:nth-of-type({turn}) .answer[aria-busy=false]"
    page.wait_for_selector(selector, state="attached", timeout=60000)


def in_sight(page: Page, selector: str) -> bool:
    """Whether nothing lies over the middle of an element."""
    box = page.locator(selector).last.bounding_box()
    assert box is not None
    place = [box["x"] + 10, box["y"] + min(10, box["height"] / 2)]
    hit: bool = page.evaluate(
        "([x, y, s]) => Boolean(document.elementFromPoint(x, y)?.closest(s))", [*place, selector]
    )
    return hit


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
