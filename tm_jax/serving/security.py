"""Who may talk to the server: token, origin, host, rates, and the headers of every answer."""

import collections
from collections.abc import Callable, Mapping
import hmac
import ipaddress
import time
import urllib.parse

from tm_jax.serving.runtime import pacing

LEAST_TOKEN = 16  # Characters; 16 random letters and digits are 95 bits.
_MOST_ADDRESSES = 4096  # Whose rates are remembered.

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "media-src 'self' blob:; connect-src 'self'; font-src 'self'; worker-src 'self'; "
        "manifest-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=(), payment=()",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def is_local(host: str) -> bool:
    """Whether a name or an address can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(host: str, token: str | None) -> None:
    """Refuses to serve strangers without a token.

    Raises:
      ValueError: The host is reachable from elsewhere and there is no token, or a short one.
    """
    if token is not None and len(token) < LEAST_TOKEN:
        raise ValueError(
            f"the token has {len(token)} characters; use at least {LEAST_TOKEN} random ones, "
            "for example from: openssl rand -hex 16"
        )
    if token is None and not is_local(host):
        raise ValueError(
            f"host {host} can be reached from other machines, which needs a token: set "
            "TM_JAX_TOKEN in the environment (at least 16 random characters), or bind to "
            "127.0.0.1."
        )


class Guard:
    """Decides about requests by their headers."""

    def __init__(
        self, token: str | None = None, origins: tuple[str, ...] = (), *,
        requests_per_minute: int = 120, sessions_per_minute: int = 30,
        uploads_per_minute: int = 20,
        behind_proxy: bool = False, clock: Callable[[], float] = time.monotonic,
    ):
        """Makes a guard.

        Args:
          token: Secret that callers must know; None to let everybody in.
          origins: Origins of other web pages that may use the server.
          requests_per_minute: Connections and refused requests from one address.
          sessions_per_minute: New sessions from one address; devices work for each.
          uploads_per_minute: Pictures from one address.
          behind_proxy: Whether `X-Forwarded-For` of a proxy of our own names the caller.
          clock: Seconds.
        """
        self._token = token
        self._origins = {origin.rstrip("/").lower() for origin in origins}
        self._behind_proxy, self._clock = behind_proxy, clock
        self._rates = {
            "request": requests_per_minute, "session": sessions_per_minute,
            "upload": uploads_per_minute,
        }
        self._buckets: collections.OrderedDict = collections.OrderedDict()

    def knows(self, token: str | None) -> bool:
        """Whether a token opens the server."""
        if self._token is None:
            return True
        return token is not None and hmac.compare_digest(token.encode(), self._token.encode())

    def authorized(self, headers: Mapping[str, str]) -> bool:
        """Whether `Authorization: Bearer TOKEN` opens the server."""
        kind, _, token = headers.get("Authorization", "").partition(" ")
        return self.knows(token.strip() if kind.lower() == "bearer" else None)

    def allowed_host(self, host: str) -> bool:
        """Whether the name that the browser used can be ours.

        Without a token only this machine is served; another name that leads here (DNS
        rebinding) comes from somebody else's page.
        """
        if self._token is not None:
            return True
        try:
            return is_local(urllib.parse.urlsplit(f"//{host}").hostname or "")
        except ValueError:
            return False

    def allowed_origin(self, origin: str | None, host: str) -> bool:
        """Whether a page of that origin may use the server; programs send no origin."""
        if origin is None:
            return True
        if origin.rstrip("/").lower() in self._origins:
            return True
        try:
            return bool(host) and urllib.parse.urlsplit(origin).netloc.lower() == host.lower()
        except ValueError:
            return False

    def address(self, remote: str | None, headers: Mapping[str, str]) -> str:
        """Where a request comes from; of an IPv6 address the part that a caller is given."""
        found = remote or "unknown"
        if self._behind_proxy:
            # The last entry is the one that our own proxy has written.
            found = headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()[:64] or found
        try:
            address = ipaddress.ip_address(found)
        except ValueError:
            return found
        if address.version == 6 and not address.ipv4_mapped:
            return str(ipaddress.ip_network((address, 64), strict=False))
        return found

    def within_rate(self, kind: str, address: str) -> bool:
        """Counts a "request", "session" or "upload" of an address; False beyond its rate."""
        key = kind, address
        bucket = self._buckets.pop(key, None)
        if bucket is None:
            per_minute = self._rates[kind]
            bucket = pacing.Bucket(per_minute / 60, per_minute, self._clock)
        self._buckets[key] = bucket
        while len(self._buckets) > _MOST_ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take(1)
