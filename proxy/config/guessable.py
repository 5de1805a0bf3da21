"""Secrets of our own that everybody can guess: too short, or ones that stand in some documentation.

They are what opens this proxy, so one that a stranger would try first is no secret.
"""

from hashlib import sha256

SHORTEST = 16
"""Take a key of fewer characters for one that is found by trying."""

_EXAMPLES = "AH_SMKRPA_{0} ah-{0} humiris-{0}".format("0" * 32)
"""The defaults of docs/examples."""
_DOCUMENTED = """
1234 12345 123456 12345678 123456789 1234567890 0123456789abcdef abc123 admin administrator
anything api-key api_key apikey apikey123 bearer changeit changeme change-me change_me changeme123
default dummy dummy-key EMPTY empty example fake fake-key foo foobar guest key letmein lm-studio
local master-key my-api-key my-key my-secret my-secret-key mysecret mysecretkey no-key
no-key-needed no-key-required none not-needed not-used null ollama openai pass password
password123 placeholder proxy qwerty replace-me replace_me root s3cr3t secret secret-key secretkey
sk-1234 sk-12345 sk-123456 sk-1234567890 sk-1234567890abcdef
sk-1234567890abcdefghijklmnopqrstuvwxyz sk-abc123 sk-changeme sk-dummy sk-dummy-key sk-example
sk-fake sk-fake-key sk-key sk-litellm sk-local sk-master-key sk-no-key-required sk-not-needed
sk-placeholder sk-proj-1234567890 sk-secret sk-test sk-test-key sk-xxx sk-xxxx sk-your-api-key
sk-your-key sk-your-key-here super-secret supersecret team test test-key test123 testkey testtest
tl-test token trunkline unused user xxx xxxx xxxxxxxx xxxxxxxxxxxxxxxx your-api-key
your-api-key-here your-key your-key-here your-openai-api-key your-secret-key your_api_key
your_api_key_here your_openai_api_key YOUR_API_KEY YOUR_KEY YOUR_OPENAI_API_KEY <your-api-key>
<your-key> sk-...
"""
"""What the pages of gateways, vendors and clients tell people to put in, and to change later."""


def digests() -> frozenset[bytes]:
    """Return the SHA-256 of every one that is known: what a `hash` of it would be."""
    texts = f"{_EXAMPLES} {_DOCUMENTED}".split()
    return frozenset(sha256(text.encode()).digest() for text in texts)


def weakness(text: str | None, digest: bytes, listed: frozenset[bytes]) -> str | None:
    """Say why the secret *text* (None where only its *digest* is known) can be guessed, None if it
    cannot. *listed* are `digests`.
    """
    if digest in listed:
        return "is one that everybody knows"
    if text is not None and len(text) < SHORTEST:
        return f"has fewer than {SHORTEST} characters: it can be guessed"
    return None
