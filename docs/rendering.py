"""What the site does to each page: formulas become MathML and lone figures get a caption.

MathML is drawn by the browser itself, so that a reader needs no network and no script.
"""

import html
import re

from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError

CONVERTER = LatexToMathML()
FORMULA = re.compile(r'(<(?:span|div) class="arithmatex">)\\([(\[])(.*?)\\[)\]](?=</)', re.DOTALL)
FIGURE = re.compile(r'<p>(<img alt="([^"]+)"[^>]*>)</p>')


def on_page_content(content: str, page, **kwargs) -> str:
    """Called by MkDocs with the body of each page, which holds the docstrings too."""

    def mathml(match: re.Match) -> str:
        opening, bracket, source = match.groups()
        tex = html.unescape(source)
        try:
            drawn = CONVERTER.convert_with_local_state(tex, displaystyle=bracket == "[")
        except LatexError as error:
            raise PluginError(f"{page.file.src_uri}: a formula that is not TeX: {tex}") from error
        return opening + drawn

    content = FORMULA.sub(mathml, content)
    return FIGURE.sub(r"<figure>\1<figcaption>\2</figcaption></figure>", content)
