"""Turns links of the repository's pages into links of the site: pages lie there beside each other, and files do not.

A page of docs/ names `../results/NAME/README.md` or `../deploy/FILE`, so that it reads well in the repository, too.
"""

import re
from typing import Any

LINK = re.compile(r"\[([^\]]*)\]\(((?:\.\./)*)([^)#\s]+)((?:#[^)]*)?)\)")
PAGES = re.compile(r"results/[^/]+/[^/]+\.(md|svg|png)|(CHANGELOG|CONTRIBUTING)\.md|docs/.+\.(md|svg|png)")
OUTSIDE = re.compile(r"[a-z]+:")


def on_page_markdown(markdown: str, page: Any, **unused: Any) -> str:
    """Rewrites the links of a page; a link to a file that is no page becomes its name."""
    depth = page.file.src_uri.count("/")

    def site_link(found: re.Match[str]) -> str:
        text, above, target, anchor = found.groups()
        if OUTSIDE.match(target):
            return found[0]
        levels = len(above) // 3
        if levels <= depth and not target.startswith("docs/"):
            return found[0]
        if PAGES.fullmatch(target):
            return f"[{text}]({'../' * depth}{target.removeprefix('docs/')}{anchor})"
        return f"`{target}`" if text == target else f"{text} (`{target}`)"

    return LINK.sub(site_link, markdown)
