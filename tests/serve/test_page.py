"""The chat page in a real Chromium; without one these tests are skipped."""

import contextlib
import json
import re
import shutil

import httpx
import pytest

from pangu_ms.infer.domains import Domains
from pangu_ms.serve.app import Settings
from pangu_ms.serve.page import PATHS
from tests.serve.common import running
from tests.serve.models import model_of
from tests.serve.speaker import ANSWERS, Speaker

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync"
).split()
SECONDS = 60  # for anything; a busy machine is slow


@pytest.fixture(scope="module")
def speaker(tokenizer):
    return Speaker(tokenizer)


@pytest.fixture(scope="module")
def server(speaker, tokenizer):
    with running(model_of(speaker, tokenizer)) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM:
        pytest.skip("there is no chromium on this machine")
    sync_api.expect.set_options(timeout=1000 * SECONDS)
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def expect(browser):
    from playwright.sync_api import expect

    return expect


@pytest.fixture
def open_page(browser, server, speaker):
    """A function that opens the page with a fresh profile. Nothing fails in its scripts, breaks its policy, or goes to
    another host."""
    faults, hosts = [], set()

    def open(url=server.url, **options):
        context = opened.enter_context(browser.new_context(**options))
        context.set_default_timeout(1000 * SECONDS)
        page = context.new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda line: line.type == "error" and faults.append(line.text))
        page.on("request", lambda request: hosts.add(httpx.URL(request.url).host))
        page.goto(url)
        page.locator("#model option, #error:not([hidden])").first.wait_for(state="attached")
        return page

    with contextlib.ExitStack() as opened:
        yield open
    speaker.go_on()
    assert [line for line in faults if not line.startswith("Failed to load resource")] == []
    assert hosts <= {"127.0.0.1"}
    assert server.idle()


def ask(page, text):
    page.fill("#text", text)
    page.keyboard.press("Enter")


def last(page):
    """The newest article's text."""
    return page.locator("article").last.locator(".content")


def test_a_conversation_streams_and_survives_a_reload(open_page, expect, speaker, server):
    page = open_page(viewport={"width": 800, "height": 560})
    speaker.hold(at=12)
    ask(page, "count")
    expect(last(page)).to_contain_text("1 2 3")
    early = last(page).text_content()
    assert ANSWERS["count"].startswith(early) and early != ANSWERS["count"]
    expect(page.locator("article.streaming")).to_have_count(1)
    expect(last(page)).to_be_in_viewport(ratio=1)
    speaker.go_on()
    expect(last(page)).to_have_text(ANSWERS["count"])
    expect(page.locator("#send")).to_be_visible()
    expect(page.locator("article.streaming")).to_have_count(0)
    expect(page.locator("#status")).to_have_text(ANSWERS["count"])  # told once, at the end
    page.click("#settings summary")
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0")
    ask(page, "second")
    expect(last(page)).to_have_text("You said: second")
    expect(last(page)).to_be_in_viewport(ratio=1)
    # The model has seen all of it.
    heard = speaker.heard[-1]
    assert re.findall("Be brief|count|20 21|second", heard) == ["Be brief", "count", "20 21", "second"]
    page.reload()
    texts = ["count", ANSWERS["count"], "second", "You said: second"]
    expect(page.locator("article .content")).to_have_text(texts)
    assert page.input_value("#system") == "Be brief." and page.input_value("#temperature") == "0"
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#new-chat")
    expect(page.locator("article")).to_have_count(0)
    page.reload()
    expect(page.locator("article")).to_have_count(0)


def test_stop_and_retry(open_page, expect, speaker, server):
    page = open_page()
    speaker.hold(at=12)
    ask(page, "count")
    expect(last(page)).to_contain_text("1 2 3")
    assert 'pangu_slots_busy{model="toy"} 1.0' in server.client.get("/metrics").text
    page.click("#stop")
    expect(page.locator("#send")).to_be_visible()
    stopped = last(page).text_content()
    assert ANSWERS["count"].startswith(stopped) and stopped != ANSWERS["count"]
    expect(page.locator("article footer").last).to_contain_text("stopped")
    speaker.go_on()
    assert server.idle()
    assert 'pangu_slots_busy{model="toy"} 0.0' in server.client.get("/metrics").text
    page.click("#retry")
    expect(last(page)).to_have_text(ANSWERS["count"])
    expect(page.locator("article")).to_have_count(2)


def test_stopped_before_the_first_token(open_page, expect, speaker, server):
    """The question is where it was written."""
    page = open_page()
    speaker.hold(at=0)
    ask(page, "count")
    page.click("#stop")
    expect(page.locator("#text")).to_have_value("count")
    expect(page.locator("article")).to_have_count(0)


def test_a_reload_in_the_middle_of_an_answer(open_page, expect, speaker, server):
    page = open_page()
    speaker.hold(at=12)
    ask(page, "count")
    expect(last(page)).to_contain_text("1 2 3")
    page.reload()
    assert last(page).text_content().startswith("1 2 3")
    speaker.go_on()
    assert server.idle()
    page.click("#retry")
    expect(last(page)).to_have_text(ANSWERS["count"])


def test_chinese_with_an_input_method(open_page, expect):
    """Enter chooses the word that is being composed; the next one sends."""
    page = open_page()
    keys = page.context.new_cdp_session(page)
    page.focus("#text")
    keys.send("Input.imeSetComposition", {"text": "你好", "selectionStart": 2, "selectionEnd": 2})
    page.keyboard.press("Enter")
    expect(page.locator("article")).to_have_count(0)
    keys.send("Input.insertText", {"text": "你好"})
    page.keyboard.press("Enter")
    expect(page.locator("article .content")).to_have_text(["你好", ANSWERS["你好"]])


def test_text_of_a_model_is_no_html(open_page, expect):
    page = open_page()
    ask(page, "html")
    expect(last(page)).to_have_text(ANSWERS["html"])
    assert page.locator("#messages").locator("script, b, img").count() == 0
    assert page.title() == "PanGu chat"


def test_errors_are_shown(open_page, expect):
    """What was asked is not lost, and the next try works."""
    page = open_page()
    page.click("#settings summary")
    page.fill("#max-tokens", "100000")
    ask(page, "hello")
    expect(page.locator("#error")).to_contain_text("maximum context length is 512 tokens")
    expect(page.locator("#text")).to_have_value("hello")
    expect(page.locator("article")).to_have_count(0)
    page.fill("#max-tokens", "4")
    page.focus("#text")
    page.keyboard.press("Enter")
    expect(page.locator("article footer").last).to_contain_text("cut off")
    expect(page.locator("#error")).to_be_hidden()
    # A failed retry keeps the earlier answer.
    earlier = last(page).text_content()
    page.fill("#max-tokens", "100000")
    page.click("#retry")
    expect(page.locator("#error")).to_be_visible()
    assert last(page).text_content() == earlier


def test_an_api_key(open_page, expect, tokenizer):
    with running(model_of(Speaker(tokenizer), tokenizer), settings=Settings(api_keys=["secret"])) as locked:
        for path in PATHS:
            assert locked.client.get(path).status_code == 200  # the page itself asks for none
        page = open_page(locked.url)
        expect(page.locator("#error")).to_contain_text("API key")
        page.click("#settings summary")
        page.fill("#api-key", "secret")
        ask(page, "hello")
        expect(last(page)).to_have_text("You said: hello")
        expect(page.locator("#error")).to_be_hidden()
        assert "secret" not in page.evaluate("JSON.stringify(localStorage)")
    # Now the server is gone.
    ask(page, "still there?")
    expect(page.locator("#error")).to_contain_text("cannot be reached")
    expect(page.locator("#text")).to_have_value("still there?")


def test_domains(open_page, expect, tokenizer):
    """The chosen one is asked, and chosen again after a reload."""
    domains = Domains(("news", "law"))
    with running(model_of(Speaker(tokenizer, domains=domains), tokenizer)) as server:
        page = open_page(server.url)
        page.select_option("#domain", "law")
        page.reload()
        expect(page.locator("#domain")).to_have_value("law")
        with page.expect_request("**/v1/chat/completions") as asked:
            ask(page, "hello")
        assert asked.value.post_data_json["domain"] == "law"
        expect(last(page)).to_have_text("You said: hello")


@pytest.mark.parametrize(
    "end, note, error",
    [
        ("data: [DONE]\n\n", "", ""),
        ("", "broken off", "The connection ended before the answer did."),
        ('data: {"error": {"message": "It failed."}}\n\ndata: [DONE]\n\n', "broken off", "It failed."),
    ],
)
def test_streams_of_every_kind(open_page, expect, end, note, error):
    """A reasoning is folded; an answer that broke off is kept, and said to be none."""
    page = open_page()
    expect(page.locator("#domain")).to_be_hidden()
    deltas = ({"role": "assistant", "content": ""}, {"reasoning_content": "Hm."}, {"content": "Well"})
    body = "".join(f"data: {json.dumps({'choices': [{'index': 0, 'delta': delta}]})}\n\n" for delta in deltas) + end
    page.route("**/v1/chat/completions", lambda route: route.fulfill(body=body, content_type="text/event-stream"))
    ask(page, "hello")
    expect(page.locator("#retry")).to_be_enabled()
    expect(last(page)).to_have_text("Well")
    expect(page.locator("article footer span").last).to_have_text(note)
    expect(page.locator("#error")).to_have_text(error)
    expect(page.get_by_text("Hm.")).to_be_hidden()
    page.locator("article.assistant summary").click()
    expect(page.get_by_text("Hm.")).to_be_visible()


def test_behind_a_proxy_with_a_prefix(open_page, expect, tokenizer, server):
    """Its addresses are relative."""
    page = open_page(f"{server.url}/")
    page.route(
        "**/prefix/**", lambda route: route.fulfill(response=route.fetch(url=route.request.url.replace("/prefix", "")))
    )
    asked = []
    page.on("request", lambda request: asked.append(httpx.URL(request.url).path))
    page.goto(f"{server.url}/prefix/")
    ask(page, "hello")
    expect(last(page)).to_have_text("You said: hello")
    assert len(asked) >= 5 and all(path.startswith("/prefix/") for path in asked), asked


def test_the_keyboard_alone(open_page, expect, speaker):
    page = open_page()

    def focused():
        return page.evaluate("document.activeElement.id || document.activeElement.tagName")

    assert focused() == "text"
    page.keyboard.type("a")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("count")
    speaker.hold(at=12)
    page.keyboard.press("Enter")
    expect(last(page)).to_contain_text("1 2 3")
    assert page.locator("article.user .content").text_content() == "a\ncount"
    page.keyboard.press("Escape")
    expect(page.locator("#retry")).to_be_enabled()
    assert focused() == "text"
    speaker.go_on()
    order = []
    while not order or order[-1] != "text":
        page.keyboard.press("Tab")
        order.append(focused())
        assert len(order) < 30, order
    assert order[:2] == ["send", "retry"]
    rest = [name for name in order[2:] if name != "BODY"]
    assert rest == ["model", "new-chat", "theme", "messages", "BUTTON", "BUTTON", "SUMMARY", "text"]
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # Retry
    expect(last(page)).to_have_text(ANSWERS["count"])
    expect(page.locator("#retry")).to_be_enabled()
    assert focused() == "text"  # Retry was disabled meanwhile
    unnamed = "!element.labels?.length && !element.textContent.trim() && !element.ariaLabel"
    script = f"Array.from(document.querySelectorAll('input, textarea, select, button')).filter((element) => {unnamed})"
    assert page.evaluate(f"{script}.length") == 0


def test_a_phone(open_page, expect):
    page = open_page(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    page.tap("#text")
    page.keyboard.type("word")
    page.keyboard.press("Enter")  # begins a line
    expect(page.locator("article")).to_have_count(0)
    page.tap("#send")
    expect(last(page)).to_have_text(ANSWERS["word"])
    page.tap("#settings summary")
    for name in ("html", "#messages", "article >> nth=1"):
        width = page.locator(name).evaluate("element => [element.scrollWidth, element.clientWidth]")
        assert width[0] <= width[1] <= 360, name
    for name in ("#send", "#text", "#new-chat", "#messages"):
        box = page.locator(name).bounding_box()
        assert box["y"] + box["height"] <= 640 and box["height"] >= 24, name


CONTRASTS = """() => {
  const channels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
  const luminance = (colour) => {
    const [red, green, blue] = channels(colour).map((channel) => linear(channel / 255));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const behind = (element) => {
    const colour = getComputedStyle(element).backgroundColor;
    return channels(colour)[3] === 0 ? behind(element.parentElement) : colour;
  };
  const all = [...document.body.querySelectorAll("*")];
  const visible = all.filter((element) => element.checkVisibility() && !element.disabled);
  const rows = visible.map((element) => [element, getComputedStyle(element).color]);
  const text = document.getElementById("text");
  rows.push([text, getComputedStyle(text, "::placeholder").color]);
  return rows.map(([element, colour]) => {
    const [dark, light] = [luminance(colour), luminance(behind(element))].sort((a, b) => a - b);
    return [(light + 0.05) / (dark + 0.05), element.id || element.className || element.tagName];
  });
}"""


BACKGROUND = "getComputedStyle(document.body).backgroundColor"


def test_light_and_dark(open_page, expect):
    """By the system's wish, and by the button; texts are legible in both."""
    shots, backgrounds = {}, {}
    for scheme in ("light", "dark"):
        page = open_page(color_scheme=scheme)
        page.click("#settings summary")
        ask(page, "hello")
        expect(last(page)).to_have_text("You said: hello")
        page.evaluate("say('An error.')")
        expect(page.locator("#send")).to_be_visible()
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 25 and min(contrasts)[0] >= 4.5, min(contrasts)
        shots[scheme] = page.screenshot()
        backgrounds[scheme] = page.evaluate(BACKGROUND)
        page.click("#theme")
        backgrounds[f"not {scheme}"] = page.evaluate(BACKGROUND)
        page.reload()
        assert page.evaluate(BACKGROUND) == backgrounds[f"not {scheme}"]
    assert shots["light"] != shots["dark"]
    assert backgrounds["light"] == backgrounds["not dark"] != backgrounds["dark"] == backgrounds["not light"]


@pytest.mark.parametrize("way", ["of today", "over plain HTTP"])
def test_copy(open_page, expect, way):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.evaluate("navigator.clipboard.writeText('before')")
    if way == "over plain HTTP":
        page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()); }")
    ask(page, "count")
    expect(last(page)).to_have_text(ANSWERS["count"])
    copy = page.locator("article.assistant button")
    copy.click()
    expect(copy).to_have_text("Copied")
    assert page.evaluate("navigator.clipboard.readText()") == ANSWERS["count"]


def test_headers_and_switching_it_off(server, tokenizer):
    for path in PATHS:
        answer = server.client.get(path)
        assert answer.status_code == server.client.head(path).status_code == 200
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert "text/html" in server.client.get("/").headers["content-type"]
    assert server.client.get("/page/../app.py").status_code == server.client.get("/page/").status_code == 404
    assert "/page" not in server.client.get("/openapi.json").text
    with running(model_of(Speaker(tokenizer), tokenizer), settings=Settings(page=False)) as bare:
        assert [bare.client.get(path).status_code for path in PATHS] == [404] * len(PATHS)
