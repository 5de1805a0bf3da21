"""The two pages for people, `docs.html` and `explorer.html`, and the policy they are shown under.

They are the same for everybody and hold nothing secret: what they show, they ask for with the
visitor's own key. They never name another origin, and each is whole: `page.css` and `page.js`, which
they share, are put into them here.
"""

import re
from base64 import b64encode
from dataclasses import dataclass
from hashlib import sha256
from importlib.resources import files

_SHARED = re.compile(r"/\* (page\.(?:css|js)) \*/")
_INLINE = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Page:
    """A whole page, and the *policy* (Content-Security-Policy) that lets its own parts run, and no
    others.
    """

    text: str
    policy: str

    def at(self, root: str) -> bytes:
        """Return the page for a path from which *root* leads back to the proxy."""
        return (
            self.text.replace('data-root="."', f'data-root="{root}"')
            .replace('href="./', f'href="{root}/')
            .encode()
        )


def load(name: str) -> Page:
    """Read the page *name*, put in what it shares with the other, and make its policy."""
    text = _SHARED.sub(lambda match: _read(match[1]).strip(), _read(name))
    hashes: dict[str, list[str]] = {"script": [], "style": []}
    for tag, inline in _INLINE.findall(text):
        digest = b64encode(sha256(inline.encode()).digest()).decode()
        hashes[tag].append(f"'sha256-{digest}'")
    policy = (
        f"default-src 'none'; script-src {' '.join(hashes['script'])}; "
        f"style-src {' '.join(hashes['style'])}; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return Page(text, policy)


def _read(name: str) -> str:
    return files("proxy.pages").joinpath(name).read_text("utf-8")
