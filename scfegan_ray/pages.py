"""HTML pages that need no other file and run nothing, and charts for them."""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from typing import Any

import jinja2


def render(package: str, template: str, **values: Any) -> bytes:
    """Fill a template, which extends `page.html.jinja`; whatever the values hold is shown as text.

    Args:
        package: that the template is a file of.
        template: its name.
        values: what it names; one that it names and is not given is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader([jinja2.PackageLoader(package, "."), jinja2.PackageLoader("scfegan_ray", ".")]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(**values)
    return page.encode(errors="backslashreplace")  # a key may hold what is no UTF-8


def data_uri(kind: str, content: bytes) -> str:
    """Return a file as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


@contextlib.contextmanager
def chart(size_px: tuple[int, int], seed: str, kind: str = "svg") -> Iterator[tuple[Any, io.BytesIO]]:
    """Draw a chart, whatever matplotlib's settings on this machine are.

    Args:
        size_px: its width and height.
        seed: of the names within an SVG file, so that the same chart is the same file.
        kind: "svg", or "rgba" for the pixels alone: (height, width, 4) uint8.

    Yields:
        matplotlib's figure, and the file that holds it afterwards.
    """
    # Takes half a second, which the start of a job can do without.
    import matplotlib.style
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.style.context(("default", {"font.size": 8.0, "svg.hashsalt": seed})):
        figure = Figure(figsize=(size_px[0] / 100, size_px[1] / 100), dpi=100)
        yield figure, file
        figure.savefig(file, format=kind, metadata={"Date": None, "Creator": None} if kind == "svg" else None)
