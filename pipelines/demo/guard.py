"""Who may use the page: whom the browser shows it to, and nobody whom another page sends.

Any page that a browser has open can send requests to this machine. It is told apart by two headers
that a page cannot choose. *Host* is the name by which the browser reached us: where a foreign name
was made to point at our address (DNS rebinding), it is that name, never an address. *Origin* comes
with every request that changes something, and names the page that sends it.
"""

from collections.abc import Collection
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every answer: the page loads from here alone, no other page shows or reads it, and no picture
is written to a browser's cache on the disk."""


class Guard:
    """Refuses requests that another page sends, and adds `HEADERS` to every answer.

    Args:
        app: what is guarded.
        names: by which this machine may be called, besides localhost and any address.
    """

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        self._app = app
        self._names = {"localhost", *map(str.lower, names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else ""
        answer = JSONResponse({"error": refusal}, status_code=403) if refusal else self._app
        await answer(scope, receive, with_headers)

    def _refusal(self, headers: Headers) -> str:
        """Say why a request is refused; nothing if it is not."""
        host, origin = headers.get("host", ""), headers.get("origin")
        name = _hostname(host)
        if name not in self._names and not _is_address(name):
            return (
                f"this page is not served by the name {name!r}; if that is this machine, start "
                f"the page with --names {name}"
            )
        if origin is not None and origin.partition("://")[2] != host:
            return f"a page of {origin!r} may not use this one"
        return ""


def _hostname(host: str) -> str:
    """Return the name in a Host header, without the port; nothing if it has none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # a bracket without its pair
        return ""


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
