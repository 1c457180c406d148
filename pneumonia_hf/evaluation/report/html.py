"""report.html: one file with a table of contents, and figures that can be enlarged."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from html import escape
from itertools import count
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --line: #8886; --back: #fff; --text: #1a1a1a; --soft: #f2f4f7 }
@media (prefers-color-scheme: dark) {
  :root { --back: #15181c; --text: #e8e8e8; --soft: #20252b } figure { background: #fff }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--back);
  margin: 0 auto; max-width: 76rem; padding: 1rem; display: grid;
  grid-template-columns: minmax(0, 1fr); gap: 0 2rem }
nav ul { list-style: none; padding: 0 }
nav a { color: inherit }
@media (min-width: 64rem) { body { grid-template-columns: 14rem minmax(0, 1fr) }
  nav { position: sticky; top: 1rem; align-self: start } }
main { min-width: 0; overflow-wrap: anywhere }
main > table { display: block; overflow-x: auto; border-collapse: collapse; margin: 1rem 0;
  font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem .25rem 0; text-align: left;
  overflow-wrap: normal }
pre { background: var(--soft); padding: .75rem; overflow-x: auto }
figure { display: inline-block; max-width: 100%; margin: .5rem .75rem .5rem 0; vertical-align: top }
figure button { border: 1px solid var(--line); padding: .25rem; background: none; cursor: zoom-in }
figure img { width: 24rem; max-width: 100%; display: block }
figure.wide img { width: 100% } figure.wide { display: block }
figure.large { position: fixed; inset: 0; margin: 0; z-index: 1; background: #fff }
figure.large button { width: 100%; height: 100%; cursor: zoom-out }
figure.large img { width: 100%; height: 100%; object-fit: contain }
@media print { nav { display: none } body { display: block } }
"""
SCRIPT = """
document.querySelectorAll("figure button").forEach(button => button.onclick = () => {
  const large = button.parentElement.classList.toggle("large");
  button.setAttribute("aria-expanded", large);
});
document.onkeydown = event => event.key === "Escape" &&
  document.querySelectorAll("figure.large button").forEach(button => button.click());
"""
PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<nav aria-label="Contents">{contents}</nav>
<main>
{body}
<p>{privacy}</p>
</main>
<script>{script}</script>
</body>
</html>
"""
WITHOUT_IMAGES = "This page holds no X-ray: its figures are drawn from numbers only."
WITH_IMAGES = "This page holds X-rays of patients: pass it on only where that is allowed."
WIDE = {"robustness", "subgroups", "sites", "examples"}
FIGURE = re.compile(r'<p><img src="([^"]*)\.png" alt="([^"]*)" ?/?></p>')
HEADING = re.compile(r"<h2>(.*?)</h2>")


def to_html(text: str, figures: Mapping[str, Path], with_images: bool = False) -> str:
    """Return the report as one self-contained page.

    Names of files and data may hold anything: HTML in them is shown as text, and only the given
    figures are shown as images.

    Args:
        text: the report in Markdown.
        figures: the SVG or PNG file of each figure, by the name of its PNG file in `text`.
        with_images: whether a figure shows X-rays.
    """
    from markdown_it import MarkdownIt

    # Of this preset, HTML is off and links to scripts are refused.
    converter = MarkdownIt("js-default").disable(["link", "autolink", "reference"])
    body = FIGURE.sub(lambda found: _to_figure(found, figures), converter.render(text))
    titles = HEADING.findall(body)
    entries = "".join(f'<li><a href="#part-{at}">{one}</a></li>' for at, one in enumerate(titles))
    numbers = count()
    body = HEADING.sub(lambda found: f'<h2 id="part-{next(numbers)}">{found[1]}</h2>', body)
    return PAGE.format(
        title=escape(text.partition("\n")[0].lstrip("# ")),
        style=STYLE,
        contents=f"<ul>{entries}</ul>",
        body=body,
        privacy=WITH_IMAGES if with_images else WITHOUT_IMAGES,
        script=SCRIPT,
    )


def _to_figure(found: re.Match, figures: Mapping[str, Path]) -> str:
    name, label = found.groups()
    if name not in figures:
        return f"<p>{label}</p>"
    data = base64.b64encode(figures[name].read_bytes()).decode()
    format = {".svg": "svg+xml", ".png": "png"}[figures[name].suffix]
    kind = ' class="wide"' if name in WIDE else ""
    return (
        f'<figure{kind}><button type="button" aria-expanded="false" title="Enlarge">'
        f'<img alt="{label}" src="data:image/{format};base64,{data}"></button></figure>'
    )
