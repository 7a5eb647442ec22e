"""The page in a headless browser: what somebody would see, as JSON."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

_DROP = """([name, url]) => {
  const bytes = Uint8Array.from(atob(url.split(",")[1]), letter => letter.charCodeAt(0));
  const transfer = new DataTransfer();
  transfer.items.add(new File([bytes], name, { type: "image/png" }));
  document.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true }));
}"""
_BROKEN = "document.documentElement.scrollWidth > innerWidth"


def main(chromium: str, url: str, picture: str, axe: str, folder: str) -> dict[str, Any]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        try:
            return {
                "wide": visit(browser, url, picture, axe, Path(folder), width=1280),
                "phone": visit(browser, url, picture, axe, Path(folder), width=390, dark=True),
                "narrow": visit(browser, url, picture, "", Path(folder), width=320),
            }
        finally:
            browser.close()


def visit(
    browser: Any, url: str, picture: str, axe: str, folder: Path, *, width: int, dark: bool = False
) -> dict[str, Any]:
    context = browser.new_context(
        viewport={"width": width, "height": 844},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
    )
    page = context.new_page()
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else 0)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(url)
    page.wait_for_selector("#model:not(:empty)")
    page.evaluate(_DROP, ["a.png", picture])
    page.wait_for_selector("#figure:not([hidden])")
    before = overlay(page)
    # By keyboard alone, from the text on.
    page.keyboard.type("What is this?")
    page.keyboard.press("Enter")
    first = settled(page)
    page.focus("#slider")
    for _ in range(3):
        page.keyboard.press("ArrowLeft")
    preview = overlay(page)
    page.wait_for_selector(".runs tbody tr:nth-child(2)")
    second = settled(page)
    page.click("#everything")
    page.wait_for_selector(".runs tbody tr:nth-child(3)")
    third = settled(page)
    page.screenshot(path=folder / f"{width}.png", full_page=True)
    page.evaluate(_DROP, ["b.png", picture])
    page.wait_for_selector("#pending .thumb")
    page.fill("#text", "And this?")
    page.keyboard.press("Enter")
    fourth = settled(page, turn=1)
    found = {
        "before": before,
        "first": first,
        "preview": preview,
        "second": second,
        "everything": third,
        "conversation": fourth,
        "pictures": page.locator("#strip .thumb").count(),
        "too_wide": page.evaluate(_BROKEN),
        "complaints": complaints,
        "foreign": [each for each in requests if not each.startswith((url, "data:", "blob:"))],
        "unnamed": violations(page, axe) if axe else [],
    }
    context.close()
    return found


def settled(page: Page, turn: int = 0) -> dict[str, Any]:
    """What is on the page once the answer is complete."""
    page.wait_for_selector(f".turn:nth-of-type({turn + 1}) .answer[aria-busy=false]", timeout=60000)
    article = page.locator(".turn").nth(turn)
    return {
        "answer": article.locator(".answer").inner_text(),
        "figures": article.locator(".figures").inner_text(),
        **overlay(page),
    }


def overlay(page: Page) -> dict[str, Any]:
    path = page.locator("#kept").get_attribute("d") or ""
    return {
        "boxes": len(re.findall("M", path)),
        "visible": page.locator("#overlay").is_visible(),
        "caption": page.locator("#caption").inner_text(),
    }


def violations(page: Page, axe: str) -> list[str]:
    page.evaluate(Path(axe).read_text())
    report = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
    return [f"{each['id']}: {each['nodes'][0]['html'][:200]}" for each in report["violations"]]


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
