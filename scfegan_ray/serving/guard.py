"""Who may ask, and how much: what stands before the app, whichever server runs it.

A page elsewhere cannot drive a local editor: a request must name this machine as its host (or bring the token), so that
a name that was made to point here is of no use, and what a browser sends for another page says so (`Origin`,
`Sec-Fetch-Site`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from scfegan_ray.serving import edits
from scfegan_ray.serving.options import ServingConfig

COOKIE = "scfegan_token"
OWN_NAMES = ("127.0.0.1", "localhost", "::1")

_FORM_BYTES = 1 << 20
# Of a request beside its photograph and its edit.

_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


class _RefusedError(Exception):
    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class Guard:
    """ASGI middleware.

    Args:
        app: what is guarded.
        options: limits.
        token: empty where the address alone decides.
    """

    def __init__(self, app: ASGIApp, *, options: ServingConfig, token: str = "") -> None:
        self._app, self._token = app, token
        self._most_bytes = (options.max_upload_mb << 20) + edits.MAX_BYTES + _FORM_BYTES
        self._seconds = options.upload_seconds
        self._names = {*OWN_NAMES, options.host.strip("[]").lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return  # there are no web sockets here
        headers = Headers(scope=scope)
        try:
            if await self._logged_in(scope, send):
                return
            self._check(scope, headers)
            await self._app(scope, self._bounded(headers, receive), _hardened(scope, send))
        except _RefusedError as error:
            await _answer(send, error.status, error.reason)

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._token:
            if scope["path"] != "/api/health" and not self._has_token(headers):
                raise _RefusedError(401, "open the address with its token, as it was printed when the editor started")
        elif (urlsplit(f"//{host}").hostname or "") not in self._names:
            raise _RefusedError(403, f"this editor does not answer to the name {host!r:.100}; use 127.0.0.1")
        origin = headers.get("origin")
        elsewhere = origin is not None and urlsplit(origin).netloc != host
        crossed = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        is_opened = scope["path"] == "/" and headers.get("sec-fetch-mode") == "navigate"
        if elsewhere or (crossed and not is_opened):
            raise _RefusedError(403, "another page asked; open the editor itself")

    def _has_token(self, headers: Headers) -> bool:
        given = [headers.get("authorization", "").removeprefix("Bearer ")]
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            cookie = None
        if cookie is not None:
            given.append(cookie.value)
        return any(secrets.compare_digest(one.encode(), self._token.encode()) for one in given)

    async def _logged_in(self, scope: Scope, send: Send) -> bool:
        """Answer `/?token=…` with a cookie and the page's address without it."""
        if not self._token or scope["path"] != "/" or scope["method"] != "GET":
            return False
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not secrets.compare_digest(given.encode(), self._token.encode()):
            return False
        cookie = f"{COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
        await _answer(send, 303, "", {"Location": "/", "Set-Cookie": cookie})
        return True

    def _bounded(self, headers: Headers, receive: Receive) -> Receive:
        """Bound the bytes of a request, and the time in which they come."""
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self._most_bytes:
            raise _RefusedError(413, f"larger than {self._most_bytes >> 20} MB")
        left, is_read = self._most_bytes, False
        until = asyncio.get_running_loop().time() + self._seconds

        async def bounded() -> Message:
            nonlocal left, is_read
            if is_read:  # what is waited for now is that the client goes away
                return await receive()
            try:
                async with asyncio.timeout_at(until):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"the request did not arrive within {self._seconds:g} s") from None
            left -= len(message.get("body", b""))
            is_read = not message.get("more_body", False)
            if left < 0:
                raise HTTPException(413, f"larger than {self._most_bytes >> 20} MB")
            return message

        return bounded


def _hardened(scope: Scope, send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers["Cache-Control"] = "no-cache" if scope["path"].startswith("/page/") else "no-store"
        await send(message)

    return sent


async def _answer(send: Send, status: int, reason: str, headers: dict[str, str] | None = None) -> None:
    body = json.dumps({"error": reason}).encode() if reason else b""
    given = {"Content-Type": "application/json", "Content-Length": str(len(body)), **_HEADERS, **(headers or {})}
    pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
