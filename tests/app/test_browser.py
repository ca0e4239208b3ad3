"""The report in a real browser, headless: it is drawn, sorts and filters; run with ``pytest -m browser``."""

import json
import re
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.browser

# Clicks through the page as a reader would, and leaves what was seen in its title.
CLICKS = """
<script>
const seen = {};
const rows = () => [...document.querySelectorAll("table.samples tbody tr")].filter((row) => !row.hidden);
const column = (index) => rows().map((row) => row.cells[index].dataset.key);
const click = (index) => document.querySelectorAll("table.samples th")[index].querySelector("button").click();
const press = (name, change) => {
  const field = document.querySelector("form.filter").elements[name];
  change(field);
  field.dispatchEvent(new Event("input", { bubbles: true }));
};
window.addEventListener("load", () => {
  try {
    seen.start = column(0);
    click(0); seen.backwards = column(0);
    click(2); seen.targets = column(2);
    click(4); seen.maps = column(4).map(Number);
    seen.sorted = [...document.querySelectorAll("table.samples th")].map((th) => th.getAttribute("aria-sort"));
    press("target", (field) => { field.value = "b"; }); seen.only = column(2);
    press("target", (field) => { field.value = ""; });
    press("wrong", (field) => { field.checked = true; });
    seen.wrong = rows().length; seen.said = document.querySelector("output").textContent;
    seen.pictures = [...document.images].every((image) => image.loading === "lazy" || image.naturalWidth > 0);
    seen.formulas = [...document.querySelectorAll("math")].every((math) => math.getBoundingClientRect().height > 10);
    seen.wide = document.documentElement.scrollWidth <= window.innerWidth;
  } catch (error) { seen.error = String(error); }
  document.title = JSON.stringify(seen);
});
</script>
"""


def visit(page, script, width=1200):
    """What a script saw of a page, and what the browser complained about."""
    browser = next(path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name)))
    copy = page.with_name("visited.html")
    copy.write_text(page.read_text().replace("</body>", f"{script}</body>"))
    how = ["--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},900"]
    command = [browser, *how, "--virtual-time-budget=5000", "--dump-dom", copy.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search("<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(title.replace("&amp;", "&").replace("&lt;", "<").replace("&gt;", ">")), complaints


@pytest.mark.parametrize("width", [1200, 500])
@pytest.mark.parametrize("shape", [(1, 6, 6), (2, 5)], ids=str)
def test_a_reader_sorts_and_filters(a_run, tmp_path, shape, width):
    run = a_run(shape)
    seen, complaints = visit(tmp_path / "report.html", CLICKS, width)
    assert complaints == []
    assert "error" not in seen, seen["error"]
    assert seen["start"] == list("0123456")
    assert seen["backwards"] == list("6543210")
    assert seen["targets"] == sorted(seen["targets"])
    assert seen["maps"] == sorted(seen["maps"])
    assert seen["sorted"].index("ascending") == 4
    assert seen["sorted"].count("ascending") + seen["sorted"].count("descending") == 1
    assert seen["only"] == ["b", "b"]
    assert seen["wrong"] == run.source.count('data-wrong="true"')
    assert seen["said"] == f"{seen['wrong']} of 7 samples"
    assert seen["pictures"]
    assert seen["formulas"]
    assert seen["wide"]


def test_a_page_that_breaks_is_found_out(a_run, tmp_path):
    run = a_run((1, 6, 6))
    page = tmp_path / "report.html"
    page.write_text(run.source.replace("body.append(...rows)", "nothing.append(...rows)").replace("<math", "<maths"))
    seen, complaints = visit(page, CLICKS)
    assert complaints
    assert "".join(seen["backwards"]) != "6543210"
