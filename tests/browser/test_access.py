"""The page without a mouse, without sight, with little contrast or movement; and how it looks."""


import pytest

_LIVE = "body[data-state=live]"
_WIDGETS = {
    "button", "radio", "checkbox", "combobox", "link", "textbox", "meter", "progressbar",
    "image", "dialog", "DisclosureTriangle",
}  # fmt: skip

# Contrast of every visible text against the opaque colour behind it. Where a translucent
# layer lies over the picture, the worse of a white and a black picture counts. Text on the
# picture itself has a shadow and a dark veil of its own, and is left out.
_CONTRAST = """() => {
  const parse = (text) => {
    const paint = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    paint.fillStyle = text;
    paint.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = paint.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => c * a + below[i] * (1 - a));
  const luminance = (rgb) => {
    const [r, g, b] = rgb.map((c) => c / 255).map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const contrast = (a, b) => {
    const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
    return (high + 0.05) / (low + 0.05);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !element.checkVisibility({ visibilityProperty: true })) continue;
    const style = getComputedStyle(element);
    if (element.closest(".hidden, noscript, option") || style.textShadow !== "none") continue;
    const layers = [];
    let onPicture = false;
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      layers.push(colour);
      if (colour[3] === 1) break;
      if (e.id === "stage" || (e.matches(".bar") && document.body.dataset.state !== "idle")) { onPicture = true; break; }
    }
    const bases = onPicture ? [[255, 255, 255], [0, 0, 0]] : [[255, 255, 255]];
    const ratios = bases.map((base) => {
      const behind = layers.reduceRight((below, layer) => over(layer, below), base);
      return contrast(over(parse(style.color), behind), behind);
    });
    const size = parseFloat(style.fontSize);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    found.push({ text: walker.currentNode.data.trim(), ratio: Math.min(...ratios), least: large ? 3 : 4.5 });
  }
  return found;
}"""


def _nodes(page):
    """The accessibility tree, as screen readers get it."""
    session = page.context.new_cdp_session(page)
    nodes = session.send("Accessibility.getFullAXTree")["nodes"]
    session.detach()
    return [n for n in nodes if not n.get("ignored")]


def _check_names(page):
    seen = set()
    for node in _nodes(page):
        role = node["role"]["value"]
        if role in _WIDGETS:
            assert node.get("name", {}).get("value", "").strip(), node
            seen.add(role)
    return seen


def _check_contrast(page, least_texts):
    found = page.evaluate(_CONTRAST)
    assert len(found) >= least_texts
    assert [f for f in found if f["ratio"] < f["least"]] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_control_has_a_name_and_every_text_contrast(server, visit, scheme):
    page = visit(server.url, scheme=scheme)
    page.wait_for_selector(".face img")
    assert _check_names(page) >= {"button", "radio", "checkbox", "meter", "link"}
    _check_contrast(page, 12)
    page.click("#call")
    page.wait_for_selector(_LIVE)
    page.wait_for_selector("#captions li")
    _check_names(page)
    _check_contrast(page, 10)
    page.click("#figures-toggle")
    page.wait_for_timeout(200)
    _check_contrast(page, 20)
    server.control(drop=True)
    page.wait_for_selector("#banner:visible")
    _check_contrast(page, 12)


def _focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.value || document.activeElement.tagName")


def test_a_call_with_the_keyboard_alone(server, visit):
    page = visit(server.url)
    page.wait_for_selector(".face input:checked", state="attached")
    order = []
    for _ in range(12):
        page.keyboard.press("Tab")
        order.append(_focused(page))
        outline = page.evaluate("""() => {
          const e = document.activeElement;
          const shown = [e, e.closest("label"), ...(e.parentElement?.children ?? [])].filter(Boolean);
          return shown.some((s) => parseFloat(getComputedStyle(s).outlineWidth) >= 2 && getComputedStyle(s).outlineStyle !== "none");
        }""")
        assert outline, order
        if order[-1] == "call":
            break
    assert order[0] == "A" and order[1:3] == ["theme", "ada"]
    assert order.index("mirror") < order.index("mic-test") < order.index("call")
    page.keyboard.press("Enter")
    page.wait_for_selector(_LIVE)
    assert _focused(page) == "hangup"
    page.keyboard.press("Tab")
    assert _focused(page) == "setup-toggle"
    page.keyboard.press("Enter")
    assert page.is_visible("#setup") and _focused(page) == "setup-close"
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#name") == "Ben"
    page.keyboard.press("Escape")
    assert page.is_hidden("#setup") and _focused(page) == "setup-toggle"
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("body[data-state=idle]")
    assert _focused(page) == "call"


def test_states_are_told_to_screen_readers(server, visit):
    page = visit(server.url)
    page.wait_for_selector(".face img")
    assert page.get_attribute("#status", "role") == "status"
    page.click("#call")
    page.wait_for_selector(_LIVE)
    assert page.inner_text("#announce") == "On call with Ada"
    line = page.wait_for_selector("#captions li[data-who=avatar]")
    assert line.get_attribute("aria-hidden") is None  # it is complete
    page.click("#mute")
    assert page.inner_text("#announce") == "Microphone off"
    assert page.get_attribute("#mute", "aria-pressed") == "true"


def test_light_and_dark_follow_the_system_until_the_switch(server, visit):
    page = visit(server.url, scheme="dark")
    page.wait_for_selector(".face img")
    colour = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(colour)
    assert page.get_attribute("#theme", "aria-pressed") == "true"
    page.emulate_media(color_scheme="light")
    light = page.evaluate(colour)
    assert light != dark
    page.click("#theme")
    assert page.evaluate(colour) == dark
    page.reload()
    page.wait_for_selector(".face img")
    assert page.evaluate(colour) == dark


def test_reduced_motion_stops_animations(server, visit):
    page = visit(server.url)
    page.emulate_media(reduced_motion="reduce")
    page.wait_for_selector(".face img")
    page.click("#call")
    page.wait_for_selector(_LIVE)
    assert page.evaluate("document.getAnimations().length") == 0


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844), (320, 568), (844, 390)])
def test_nothing_is_cut_off_or_covered(server, visit, width, height):
    page = visit(server.url, width=width, height=height)
    page.wait_for_selector(".face img")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.click("label:has([value=agent])")  # the mode with the most controls
    page.click("#call")
    page.wait_for_selector(_LIVE)
    boxes = [
        b.bounding_box() for b in page.query_selector_all(".controls button") if b.is_visible()
    ]
    assert len(boxes) == 7
    assert page.evaluate("""[...document.querySelectorAll(".controls .label")].every((label) => {
      const [own, button] = [label, label.parentElement].map((e) => e.getBoundingClientRect());
      return own.left >= 0 && own.right <= innerWidth && own.width <= button.width + 6;
    })""")
    for box in boxes:
        assert box["x"] >= 0 and box["x"] + box["width"] <= width + 0.5
        assert box["y"] + box["height"] <= height and min(box["width"], box["height"]) >= 44
    video = page.locator("#video").bounding_box()
    assert video["width"] >= 0.7 * min(width, height)
    assert abs(video["width"] - video["height"]) < 2  # the picture is square and stays so
