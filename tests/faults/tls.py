"""Certificates that hold, and some that do not."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import trustme

AUTHORITY = trustme.CA()
_PAST = datetime.now(UTC) - timedelta(days=2)


def certified(
    *names: str,
    authority: trustme.CA = AUTHORITY,
    ends: datetime | None = None,
    newest: ssl.TLSVersion | None = None,
) -> Callable[[], ssl.SSLContext]:
    """Return what makes a server's context with a certificate for *names*."""

    def make() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        begins = None if ends is None else ends - timedelta(days=2)
        issued = authority.issue_cert(*(names or ("localhost",)), not_before=begins, not_after=ends)
        issued.configure_cert(context)
        if newest is not None:
            context.maximum_version = newest
        return context

    return make


BAD = {
    "expired": certified(ends=_PAST),
    "self-signed": certified(authority=trustme.CA()),
    "wrong host": certified("other.test"),
}
