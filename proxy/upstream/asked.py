"""What is asked for of an upstream, and the request that asks for it, written for one choice.

Who tells of a request before it is sent makes an `Asked` as the road does: `write` says where it would
go, and notes in its exchange which model is sent.
"""

from collections.abc import Sequence
from sys import getsizeof

import msgspec

from proxy.dialects import REALTIME, Dialect
from proxy.exchange import Exchange
from proxy.headers import NO_NAMES, Names
from proxy.model.body import Body, BodyError, Found, Piece, splice
from proxy.model.target import path_for, query_for
from proxy.outbound import (
    WEBSOCKET,
    Addressed,
    Written,
    address,
    from_azure,
    head,
    length,
)
from proxy.routes import Base, Group, Route
from proxy.upstream.balance import Choice
from proxy.upstream.connection import Upload

Pieces = Sequence[Piece]


class Asked(msgspec.Struct, eq=False):
    """What is asked for in *exchange*, of whichever of *groups* will have it.

    *name* is the model asked for, as *found* in the request, and *route* says what each target
    calls it; all None where no model is carried, *name* also where the request names none. *body* is
    held whole; an *upload* is passed on as it comes, *framing* says how. With *upgrade* the answer
    may be a tunnel. *strip* names what of the client's headers stays here, as the surface says.
    """

    exchange: Exchange
    groups: tuple[Group, ...]
    passthrough: bool
    route: Route | None = None
    name: str | None = None
    found: Found | None = None
    body: Body = b""
    framing: bytes = b""
    upload: Upload | None = None
    upgrade: bool = False
    strip: Names = NO_NAMES

    @property
    def dialect(self) -> Dialect:
        """Return the dialect that is spoken."""
        assert self.exchange.dialect is not None
        return self.exchange.dialect

    def write(self, choice: Choice) -> tuple[Addressed, Pieces]:
        """Write the request that goes to *choice*: where to, and its pieces in order. Raises `ProxyError`."""
        exchange, route, found, dialect = self.exchange, self.route, self.found, self.dialect
        upstream, framing = choice.target.upstream, self.framing
        suffix, query = exchange.suffix, exchange.query
        base: Base | None = None
        sent: str | None = None
        content: Pieces = [self.body] if self.body else []
        try:
            if found is not None and route is not None:
                sent = exchange.model_sent = route.model_sent(choice.target, self.name)
                if sent is None or sent == found.model:
                    pass  # not a byte changes
                elif dialect.carries == "body":
                    content = splice(self.body, found, sent)
                else:
                    suffix, query = self._renamed(sent)
                framing = WEBSOCKET if dialect is REALTIME else length(sum(map(len, content)))
            if exchange.azure is not None:
                base, suffix, query = from_azure(
                    upstream, exchange.azure, dialect, suffix, query, sent
                )
        except BodyError as error:
            raise error.told() from None
        known = self._begun(choice, dialect, suffix, query, base)
        return known.to, [b"%b%b\r\n" % (known.begun, framing), *content]

    def _renamed(self, sent: str) -> tuple[str, str]:
        """Return the path and the query with the model *sent* where they say one. Raises `BodyError`."""
        suffix, query = self.exchange.suffix, self.exchange.query
        if self.dialect.carries == "path":
            return path_for(suffix, sent), query
        return suffix, query_for(query, sent)

    def _begun(
        self, choice: Choice, dialect: Dialect, suffix: str, query: str, base: Base | None
    ) -> Written:
        """Return the head of the request, but for the lines that frame its body."""
        exchange, upstream, strip = self.exchange, choice.target.upstream, self.strip
        switch, hidden = None if self.route is None else self.route.switch, None
        if switch is not None:  # the header that chose the route is nobody else's business
            name = switch.name.lower().encode("ascii")
            hidden = None if name in upstream.forward else name
        signature = choice.signature(
            dialect,
            stream=exchange.stream or exchange.echo is not None,  # no name fits into gzip
            passthrough=self.passthrough,
            hidden=hidden,
        )
        known = exchange.learnt.written.get(signature)
        if (
            known is None
            or known.suffix != suffix
            or known.query != query
            or known.strip is not strip
        ):
            to = address(upstream, dialect, suffix, query, base)
            begun = head(exchange.method, to, signature, exchange.headers, strip)
            known = Written(suffix, query, strip, to, begun)
            size = len(begun) + getsizeof(to.target) + getsizeof(suffix) + getsizeof(query)
            exchange.learnt.written.keep(signature, known, size)
        return known
