"""Between the dashboard and the web: who is answered, and what browsers may do with the answers.

A study may come from somebody else, artifacts and all, and the browser that shows it has other
pages open. So no other page reads an answer, nothing of an artifact is run, and on the local
machine only requests that name it are answered.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit

LOCAL = ("127.0.0.1", "localhost", "::1")
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_COOKIE = "biotune_token"
_SHOWN = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})
_OWN_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "X-Frame-Options": "DENY",
}
_NOTHING = "default-src 'none'; sandbox; frame-ancestors 'none'"

Environ = dict[str, Any]
StartResponse = Callable[..., Any]
WSGIApp = Callable[[Environ, StartResponse], Iterable[bytes]]
Headers = list[tuple[str, str]]


def guard(app: WSGIApp, *, host: str, read_only: bool, token: str | None) -> WSGIApp:
    """Put the guard before a WSGI application; see `dashboard_app`."""
    allowed = {*LOCAL, host} if host in LOCAL else None

    def guarded(environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        if allowed is not None and _host_name(environ.get("HTTP_HOST", host)) not in allowed:
            return _refuse(start_response, "403 Forbidden", "this dashboard is for localhost only")
        if _is_foreign(environ):
            return _refuse(start_response, "403 Forbidden", "another web page asked for this")
        if token and not _knows(environ, token):
            return _refuse(start_response, "401 Unauthorized", "open the address with its token")
        if token and "token" in parse_qs(environ.get("QUERY_STRING", "")):
            return _remember(environ, start_response, token)
        if read_only and environ["REQUEST_METHOD"] not in _SAFE_METHODS:
            reason = "this dashboard was started with --read-only"
            return _refuse(start_response, "403 Forbidden", reason)
        is_artifact = environ.get("PATH_INFO", "").startswith("/artifacts/")

        def start(status: str, headers: Headers, *error: Any) -> Any:
            return start_response(status, _guarded(headers, is_artifact=is_artifact), *error)

        return app(environ, start)

    return guarded


def _guarded(headers: Headers, *, is_artifact: bool) -> Headers:
    """Return an answer's headers with which no other page reads it and nothing in it is run."""
    own = {name.lower() for name in _OWN_HEADERS}
    kept = [
        (name, value)
        for name, value in headers
        if not name.lower().startswith("access-control-") and name.lower() not in own
    ]
    kept += list(_OWN_HEADERS.items())
    kinds = {
        value.partition(";")[0].strip().lower() for n, value in kept if n.lower() == "content-type"
    }
    if is_artifact:
        left_out = {"content-security-policy", "content-disposition"}
        kept = [(name, value) for name, value in kept if name.lower() not in left_out]
        kept.append(("Content-Security-Policy", _NOTHING))
        if not kinds <= _SHOWN:
            kept.append(("Content-Disposition", "attachment"))
        return kept
    if not any(name.lower() == "content-security-policy" for name, _ in kept):
        kept.append(("Content-Security-Policy", _NOTHING if "text/html" not in kinds else _PAGE))
    return kept


_PAGE = "default-src 'self'; frame-ancestors 'none'"


def _is_foreign(environ: Environ) -> bool:
    """Whether another web page had its browser send this."""
    origin, host = environ.get("HTTP_ORIGIN"), environ.get("HTTP_HOST", "")
    if origin is not None and urlsplit(origin).netloc != host:
        return True
    site, mode = environ.get("HTTP_SEC_FETCH_SITE"), environ.get("HTTP_SEC_FETCH_MODE")
    return site in {"cross-site", "same-site"} and mode != "navigate"


def _knows(environ: Environ, token: str) -> bool:
    given = parse_qs(environ.get("QUERY_STRING", "")).get("token", [])
    scheme, _, bearer = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
    if scheme.lower() == "bearer":
        given.append(bearer.strip())
    try:
        cookie = SimpleCookie(environ.get("HTTP_COOKIE", "")).get(_COOKIE)
    except CookieError:
        cookie = None
    if cookie is not None:
        given.append(cookie.value)
    wanted = {token.encode(), quote(token, safe="").encode()}
    return any(hmac.compare_digest(one.encode(), own) for one in given for own in wanted)


def _remember(environ: Environ, start_response: StartResponse, token: str) -> Iterable[bytes]:
    """Keep the token in a cookie and take it out of the address, and so of the history."""
    rest = parse_qs(environ.get("QUERY_STRING", ""))
    rest.pop("token", None)
    path = "/" + quote(environ.get("PATH_INFO", "/")).lstrip("/")
    place = path + (f"?{urlencode(rest, doseq=True)}" if rest else "")
    cookie = f"{_COOKIE}={quote(token, safe='')}; HttpOnly; SameSite=Strict; Path=/"
    start_response("302 Found", [("Location", place), ("Set-Cookie", cookie)])
    return [b""]


def _host_name(header: str) -> str:
    """Return the host of a Host header, without port and brackets."""
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] or header


def _refuse(start_response: StartResponse, status: str, reason: str) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "application/json")])
    return [f'{{"reason": "{reason}"}}'.encode()]
