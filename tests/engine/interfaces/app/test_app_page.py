"""The app's page in a real browser."""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from app_process import running_app
from playwright.sync_api import Browser, Page, expect, sync_playwright

from isoframe.engine.demo import find_example

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")
# For a machine that does other things as well.
PATIENCE = 120_000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the app keeps its videos."""
    return tmp_path_factory.mktemp("app") / "app"


@pytest.fixture(scope="module")
def address(data: Path) -> Iterator[str]:
    with running_app(data.parent) as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(address: str, browser: Browser) -> Iterator[Callable[[], Page]]:
    """Pages of browsers that share nothing."""
    contexts = []

    def open_page() -> Page:
        contexts.append(browser.new_context(viewport={"width": 1400, "height": 1100}))
        page = contexts[-1].new_page()
        page.set_default_timeout(PATIENCE)
        page.goto(address)
        expect(page.locator("#memory svg")).to_be_visible(timeout=PATIENCE)
        return page

    yield open_page
    for context in contexts:
        context.close()


def fill_in(page: Page, seconds: float, *, steps: int = 4) -> None:
    """Everything but the button; the plan tells that the server has it."""
    image, prompt = find_example(None)
    page.locator("#image input[type=file]").set_input_files(image)
    page.locator("#prompt textarea").fill(prompt)
    page.get_by_text("Advanced").click()
    for field, value in (("#steps", steps), ("#seconds", seconds)):
        box = page.locator(f"{field} input[type=number]")
        box.fill(str(value))
        box.press("Enter")
    num_sections = max(round(30 * seconds / 36), 1)
    expect(page.locator("#plan")).to_contain_text(f"in {num_sections} section", timeout=PATIENCE)


def generate(page: Page, seconds: float, *, steps: int = 4) -> None:
    fill_in(page, seconds, steps=steps)
    page.locator("#generate").click()


def wait_for(page: Page, text: str) -> None:
    expect(page.locator("#progress")).to_contain_text(re.compile(text), timeout=PATIENCE)


def choose_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()


def test_an_upload_becomes_a_preview_and_a_video_of_the_right_length(open_page: Callable[[], Page]) -> None:
    page = open_page()
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    generate(page, 3.6)
    expect(page.locator("#strip img")).to_be_visible(timeout=PATIENCE)
    wait_for(page, "Done: 109 frames")
    expect(page.locator("#sections rect.done")).to_have_count(3)
    expect(page.locator("#sections")).to_contain_text("the end is made first")
    page.wait_for_function("document.querySelector('#video video')?.readyState >= 2")
    # While it is made the player has only a part.
    page.wait_for_function("document.querySelector('#video video').duration > 3.5")
    duration = page.evaluate("document.querySelector('#video video').duration")
    assert duration == pytest.approx(109 / 30, abs=0.02)
    assert [
        url for url in requests if "127.0.0.1" not in url and not url.startswith(("blob:", "data:"))
    ] == []


def test_bad_input_is_told_on_the_page(open_page: Callable[[], Page], tmp_path: Path) -> None:
    page = open_page()
    page.locator("#generate").click()
    expect(page.get_by_text("image must be given").first).to_be_visible(timeout=PATIENCE)
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    page.locator("#image input[type=file]").set_input_files(broken)
    page.locator("#prompt textarea").fill("a red circle bounces")
    expect(page.locator("#plan")).to_contain_text("image broken.png is damaged", timeout=PATIENCE)
    page.get_by_text("a red circle bounces", exact=True).last.click()
    expect(page.locator("#plan")).to_contain_text("Fits", timeout=PATIENCE)
    seconds = page.locator("#seconds input[type=number]")
    for value, told in (("500", "seconds must be at most 120"), ("", "seconds must be a number")):
        seconds.fill(value)
        expect(page.locator("#plan")).to_contain_text(told, timeout=PATIENCE)


def test_only_what_pages_show_is_served(open_page: Callable[[], Page], address: str, data: Path) -> None:
    page = open_page()
    generate(page, 1.2)
    wait_for(page, "Done: 37 frames")
    video = page.locator("#video video")
    expect(video).to_be_visible(timeout=PATIENCE)
    assert page.request.get(video.get_attribute("src")).status == 200
    files = [path for path in (data / "jobs").rglob("*") if path.is_file()]
    assert {"job.json", "video.mp4", "image.png"} <= {path.name for path in files}
    assert {page.request.get(f"{address}gradio_api/file={path}").status for path in files} == {403}


def test_a_video_is_paused_taken_up_again_and_cancelled(open_page: Callable[[], Page]) -> None:
    page = open_page()
    generate(page, 60)
    wait_for(page, "At work: [1-9]")
    page.locator("#pause").click()
    wait_for(page, "Paused: .* are kept")
    expect(page.locator("#video video")).to_be_visible(timeout=PATIENCE)
    page.locator("#resume").click()
    wait_for(page, "At work")
    page.locator("#cancel").click()
    wait_for(page, "Cancelled: .* are kept")
    expect(page.locator("#cancel")).to_be_disabled(timeout=PATIENCE)


def test_redoing_from_a_section_makes_another_video(open_page: Callable[[], Page]) -> None:
    page = open_page()
    generate(page, 2.4)
    wait_for(page, "Done: 73 frames")
    choose_tab(page, "Gallery")
    count = page.locator("#gallery-list img").count
    expect(page.locator("#gallery-list img").first).to_be_visible(timeout=PATIENCE)
    before = count()
    choose_tab(page, "Make")
    page.get_by_text("Redo from a section").click()
    page.locator("#redo-section input").fill("2")
    page.locator("#redo").click()
    wait_for(page, "(Waits|At work)")
    wait_for(page, "Done: 73 frames")
    choose_tab(page, "Gallery")
    expect(page.locator("#gallery-list img")).to_have_count(before + 1, timeout=PATIENCE)


def test_three_videos_queue_and_a_second_browser_sees_the_queue_but_not_the_page(
    open_page: Callable[[], Page],
) -> None:
    page, other = open_page(), open_page()
    # None of them is over before all three were seen.
    fill_in(page, 110)
    # A click is not taken before the one before it is answered.
    for answer in ("At work", "Waits behind 1 other", "Waits behind 2 others"):
        page.locator("#generate").click()
        wait_for(page, answer)
    for browser in (page, other):
        choose_tab(browser, "Queue")
        expect(browser.locator("#queue-list label")).to_have_count(3, timeout=PATIENCE)
    expect(other.locator("#progress")).to_have_text("")
    other.locator("#queue-list label").nth(0).click()
    other.locator("#queue-watch").click()
    expect(other.locator("#generate")).to_be_visible(timeout=PATIENCE)
    wait_for(other, "At work")
    choose_tab(other, "Queue")
    # From the last to the first, as the running one makes room for the next.
    for left in (2, 1, 0):
        other.locator("#queue-list label").nth(left).click()
        other.locator("#queue-cancel").click()
        expect(other.locator("#queue-list label")).to_have_count(left, timeout=PATIENCE)
    choose_tab(page, "Make")
    wait_for(page, "Cancelled")


def test_a_reload_shows_the_same_video(open_page: Callable[[], Page]) -> None:
    page = open_page()
    generate(page, 2.4)
    wait_for(page, "Done: 73 frames")
    page.reload()
    wait_for(page, "a red circle bounces .*Done: 73 frames")
    expect(page.locator("#prompt textarea")).to_have_value("a red circle bounces", timeout=PATIENCE)
    expect(page.locator("#seconds input[type=number]")).to_have_value("2.4")
    expect(page.locator("#plan")).to_contain_text("in 2 sections", timeout=PATIENCE)
    expect(page.locator("#video video")).to_be_visible(timeout=PATIENCE)


def test_the_gallery_tells_how_a_video_was_made_makes_it_again_and_deletes_it(
    open_page: Callable[[], Page],
) -> None:
    page = open_page()
    generate(page, 1.2)
    wait_for(page, "Done: 37 frames")
    choose_tab(page, "Gallery")
    pictures = page.locator("#gallery-list button img")
    expect(pictures.first).to_be_visible(timeout=PATIENCE)
    before = pictures.count()
    pictures.first.click()
    expect(page.locator("#gallery-facts")).to_contain_text("a red circle bounces", timeout=PATIENCE)
    page.locator("#gallery-reproduce").click()
    expect(page.locator("#progress")).to_be_visible(timeout=PATIENCE)
    wait_for(page, "the same file, bit for bit")
    choose_tab(page, "Gallery")
    expect(pictures).to_have_count(before + 1, timeout=PATIENCE)
    for button in ("#gallery-delete", "#gallery-keep", "#gallery-delete"):
        page.locator(button).click()
        expect(page.locator("#gallery-delete-sure")).to_be_visible(visible=button != "#gallery-keep")
    expect(pictures).to_have_count(before + 1)
    page.locator("#gallery-delete-sure").click()
    expect(pictures).to_have_count(before, timeout=PATIENCE)


def test_a_finished_video_is_made_longer(open_page: Callable[[], Page]) -> None:
    page = open_page()
    generate(page, 1.2)
    wait_for(page, "Done: 37 frames")
    page.get_by_text("Make it longer").first.click()
    seconds = page.locator("#extend-seconds input")
    seconds.fill("1.2")
    seconds.press("Enter")
    page.locator("#extend").click()
    wait_for(page, "Done: 73 frames")
    expect(page.locator("#sections rect.given")).to_have_count(1)


def test_text_alone_with_times_and_a_guide_image_becomes_a_video(open_page: Callable[[], Page]) -> None:
    page = open_page()
    expect(page.locator("#prompt")).to_contain_text("[0s] she sits [2.4s] she waves")
    page.locator("#text-alone input").check()
    page.locator("#prompt textarea").fill("a red circle [0s] bounces [1.2s] spins")
    page.get_by_text("Advanced").click()
    for field, value in (("#steps", 4), ("#seconds", 2.4)):
        box = page.locator(f"{field} input[type=number]")
        box.fill(str(value))
        box.press("Enter")
    page.locator("#guide-images input[type=file]").set_input_files([find_example("spin")[0]])
    expect(page.locator("#plan")).to_contain_text("a time for each of the 1 guide images", timeout=PATIENCE)
    page.locator("#guide-times input, #guide-times textarea").fill("1.3")
    told = "69 frames in 2 sections, .*; prompts change at 1.10 s; guide images at 1.10 s"
    expect(page.locator("#plan")).to_contain_text(re.compile(told), timeout=PATIENCE)
    page.locator("#generate").click()
    wait_for(page, "Done: 69 frames")
    choose_tab(page, "Gallery")
    expect(page.locator("#gallery-list img").first).to_be_visible(timeout=PATIENCE)
