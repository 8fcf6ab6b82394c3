"""The chat page in a headless Chromium that reaches nothing but this machine."""

import base64
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

DEADLINE_S = 20
OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # of Chromium's own: it refuses to run as root with it
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise FileNotFoundError(
            f"expected {name} on the PATH; on Debian: apt-get install chromium chromium-driver"
        )
    return found


@contextmanager
def chromium(scale: int = 1) -> Iterator[webdriver.Chrome]:
    """A browser with `scale` pixels of a screen for one of a page."""
    options = webdriver.ChromeOptions()
    options.binary_location = program("chromium")
    for option in OPTIONS:
        options.add_argument(option)
    options.add_argument(f"--force-device-scale-factor={scale}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(program("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


class ChatPage:
    """What a user sees and does."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(
        self, url: str, width: int = 1200, height: int = 800, scheme: str = "light", **settings: Any
    ) -> None:
        """Opens the page as in a new browser, with settings as a user has left them."""
        size = {"width": width, "height": height, "deviceScaleFactor": 0, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        self.command("Emulation.setTouchEmulationEnabled", enabled=width < 600)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.command("Emulation.setEmulatedMedia", features=media)
        self.driver.get(url)
        kept = json.dumps({name: str(value) for name, value in settings.items()})
        self.run(
            "sessionStorage.clear(); localStorage.setItem('l4kernels.settings', arguments[0])", kept
        )
        self.driver.refresh()

    def command(self, name: str, **parameters: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, parameters)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def button(self, label: str) -> WebElement:
        """The last one that can be seen."""
        found = [b for b in self.all("button") if label in (b.text, b.accessible_name)]
        return next(b for b in reversed(found) if b.is_displayed())

    def wait(self, condition: Callable[[], Any], what: str) -> Any:
        waiting = WebDriverWait(self.driver, DEADLINE_S, poll_frequency=0.03)
        return waiting.until(lambda _: condition(), f"expected {what}")

    def write(self, text: str) -> None:
        self.find("#text").send_keys(text)

    def send(self, text: str) -> None:
        self.write(text)
        self.button("Send").click()

    def ask(self, text: str) -> str:
        self.send(text)
        return self.answer()

    def answer(self) -> str:
        """The last answer, once it is complete."""
        self.wait(lambda: self.find("#log").get_attribute("aria-busy") == "false", "an answer")
        return self.answers()[-1]

    def answers(self) -> list[str]:
        return [element.text for element in self.all(".answer .markdown")]

    def notes(self) -> str:
        return self.all(".answer .notes")[-1].text

    def errors(self) -> list[str]:
        return [element.text for element in self.all(".error")]

    def bring(self, event: str, selector: str, name: str, kind: str, content: bytes) -> None:
        """Pastes or drops a file: what a browser does when a user does it."""
        self.run(
            """
            const [event, selector, name, type, content] = arguments;
            const bytes = Uint8Array.from(atob(content), (c) => c.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, { type }));
            const key = event === "paste" ? "clipboardData" : "dataTransfer";
            const Kind = event === "paste" ? ClipboardEvent : DragEvent;
            const made = new Kind(event, { [key]: data, bubbles: true, cancelable: true });
            document.querySelector(selector).dispatchEvent(made);
            """,
            *(event, selector, name, kind, base64.b64encode(content).decode()),
        )

    def complaints(self) -> list[str]:
        """What the console holds beside answers with an error status: scripts, policy, images."""
        log = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in log if entry["source"] != "network"]

    def picture(self, path: Path) -> None:
        data = self.command("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
