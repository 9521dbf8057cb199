"""Finds the secrets inside URIs: passwords, tokens for a user, and signatures or keys in a query."""

import re
from collections.abc import Iterator, Mapping
from urllib.parse import unquote_plus, urlsplit

MASK = "***"

START = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
WORDS = {
    "key", "token", "secret", "password", "passwd", "pass", "pwd", "auth", "sig", "signature", "sas", "credential",
    "jwt", "bearer", "session", "code", "passphrase", "hmac", "delegation", "policy",
}  # fmt: skip
"""A query's key that has such a word, as `X-Amz-Signature` and `api_key` have, names a secret."""
ENDS = (
    "token", "secret", "password", "passwd", "signature", "credential", "apikey", "accesskey", "accesskeyid",
    "sharedkey", "accountkey", "sessionid",
)  # fmt: skip
"""As has one that ends so without a sign between its words, as `AWSAccessKeyId` and `accesstoken` do."""


def has_secret(value: object) -> bool:
    """Whether a plain value, or anything within it, is a text with a URI that carries a secret."""
    if isinstance(value, str):
        return mask_uris(value) != value
    if isinstance(value, Mapping):
        return any(has_secret(key) or has_secret(item) for key, item in value.items())
    return isinstance(value, list | tuple | set | frozenset) and any(has_secret(item) for item in value)


def mask_uris(value: str) -> str:
    """A single value (a config's, an option's) with the secrets of its URIs replaced; a URI may hold spaces."""
    starts = [found.start() for found in START.finditer(value)]
    first = value[: starts[0]] if starts else value  # a path may have a query too, a connection string has pairs
    for begin, end in sorted(_pairs(first, 0), reverse=True):
        first = first[:begin] + MASK + first[end:]
    parts = [first]
    for start, stop in zip(starts, [*starts[1:], len(value)], strict=False):
        uri = value[start:stop]
        for begin, end in sorted(_secrets(uri), reverse=True):
            uri = uri[:begin] + MASK + uri[end:]
        parts.append(uri)
    return "".join(parts)


def mask_text(text: str) -> str:
    """A text with the secrets of its URIs replaced; a URI ends at the next space."""
    return re.sub(r"\S+", lambda found: mask_uris(found[0]), text)


def _secrets(uri: str) -> Iterator[tuple[int, int]]:
    """Where its secrets stand, [start, stop)."""
    after = uri.index("://") + 3
    try:
        scheme, netloc, *_ = urlsplit(uri)
    except ValueError:  # brackets that are no address: whatever stands there cannot be told from a password
        scheme, netloc = uri.partition(":")[0], re.split(r"[/?#]", uri.partition("://")[2])[0]
    at = _end_of_userinfo(uri, after, after + len(netloc))
    user, colon, password = uri[after:at].partition(":")
    if at > after:
        if colon and password:
            # Where a password is a word like `x-oauth-basic`, the user is the token.
            named = scheme.rpartition("+")[2] not in ("http", "https")
            yield (after + len(user) + 1 if named else after), at
        elif user and scheme.rpartition("+")[2] in ("http", "https"):
            yield after, after + len(user)  # a token; elsewhere a lone user is a name, or a container (abfs)
    yield from _pairs(uri, at)


def _pairs(text: str, begin: int) -> Iterator[tuple[int, int]]:
    """Where the values of a query's, a fragment's or a path's parameters are secrets, or URIs that hold one."""
    for pair in re.compile(r"[?#&;]\s*([^?&;#=]+)=([^&;#]+)").finditer(text, begin):
        inner = unquote_plus(pair[2])
        if _names_a_secret(unquote_plus(pair[1])) or ("://" in inner and mask_uris(inner) != inner):
            yield pair.span(2)


def _end_of_userinfo(uri: str, after: int, netloc_end: int) -> int:
    """Where the `@` behind the userinfo stands; `after` where there is none.

    A password with a raw `/`, `?` or `#` ends the authority for a parser, which then sees a host and a port that
    is not a number. So that such a one is found, `host:5000/a@b` counts as one too; its `@` can be written %40.
    """
    netloc, rest = uri[after:netloc_end], uri[netloc_end:]
    path = re.split(r"[?#]", rest)[0]
    port = netloc.rpartition("@")[2].rpartition(":")[2]
    if ":" in netloc and not netloc.startswith("[") and "@" in path:
        return netloc_end + path.rindex("@")
    # A port is followed by a path; `me:12?x@host` with nothing between is a password that begins with digits.
    no_port = not port.isdecimal() or (not path and "=" not in rest.partition("@")[0])
    if ":" in netloc and "@" not in netloc and "@" in rest and no_port:
        return netloc_end + rest.rindex("@")
    return after + netloc.rindex("@") if "@" in netloc else after


def _names_a_secret(key: str) -> bool:
    words = {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", key)}
    together = re.sub(r"[^a-z]", "", key.lower()).removesuffix("s")
    return bool(words & {word.removesuffix("s") for word in WORDS}) or together.endswith(ENDS)
