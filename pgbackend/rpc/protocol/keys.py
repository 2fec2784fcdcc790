"""The keys that seal messages and answers."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from typing import Any

from .errors import BadSignature, PermissionDenied, UnknownKey
from .names import is_key_id, shown

# HMAC's own advice (RFC 2104): not below the length of the hash's output.
SHORTEST = 32


class Keys:
    """Secrets by id: *current* seals, and each of *secrets* is accepted.

    A secret is at least 32 bytes; a str stands for its UTF-8. *principals* has, by a key's id,
    those that its holder may speak for; a key that is not there, or with None, speaks for any. To
    rotate, accept the new key everywhere, then make it the current one, then drop the old one.
    Raise ValueError for an id or a secret that cannot be one.
    """

    def __init__(
        self,
        current: str,
        secrets: Mapping[str, str | bytes],
        principals: Mapping[str, Iterable[str] | None] | None = None,
    ) -> None:
        self._secrets: dict[str, bytes] = {}
        for key_id, secret in secrets.items():
            if not is_key_id(key_id):
                raise ValueError(f"a key's id is 1 to 64 of A-Z a-z 0-9 _ -, not {key_id!r}")
            raw = secret.encode("utf-8") if isinstance(secret, str) else bytes(secret)
            if len(raw) < SHORTEST:
                raise ValueError(
                    f"the secret of key {key_id!r} has {len(raw)} bytes; it needs {SHORTEST}: "
                    'python -c "import secrets; print(secrets.token_hex(32))" makes one'
                )
            self._secrets[key_id] = raw
        if current not in self._secrets:
            raise ValueError(f"the current key {current!r} is none of {sorted(self._secrets)}")
        self.current = current
        if unknown := (principals or {}).keys() - self._secrets.keys():
            raise ValueError(f"principals are named for keys that are not there: {sorted(unknown)}")
        self._principals = {
            key: frozenset(names) for key, names in (principals or {}).items() if names is not None
        }

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Keys:
        """Return the keys of *settings*: "KEYS" by id, "KEY" the id of the current one, the first
        where it is missing, and "PRINCIPALS" by id, which may be missing; other names are ignored.
        """
        keys = settings.get("KEYS")
        if not keys or not isinstance(keys, Mapping):
            raise ValueError(f'KEYS is a dictionary {{"id": "secret"}}, not {type(keys).__name__}')
        return cls(settings.get("KEY") or next(iter(keys)), keys, settings.get("PRINCIPALS"))

    def __repr__(self) -> str:
        return f"<Keys current={self.current!r} accepted={sorted(self._secrets)}>"

    def __contains__(self, key_id: object) -> bool:
        return key_id in self._secrets

    def mac(self, key_id: str, body: bytes) -> str:
        """Return the seal of *body*: lowercase hexadecimal; raise `UnknownKey`."""
        secret = self._secrets.get(key_id)
        if secret is None:
            raise UnknownKey(f"there is no key {shown(key_id)}")
        return hmac.new(secret, f"v1.{key_id}.".encode() + body, hashlib.sha256).hexdigest()

    def check(self, key_id: str, mac: str, body: bytes) -> None:
        """Raise `BadSignature` unless *mac* is the seal of *body*, or `UnknownKey`."""
        # Compared as bytes: compare_digest takes only ASCII as str.
        if not hmac.compare_digest(self.mac(key_id, body).encode(), mac.encode()):
            raise BadSignature(f"the seal is not that of key {shown(key_id)}")

    def principal(self, key_id: str, asked: str | None) -> str | None:
        """Return for whom the holder of *key_id* speaks who asked for *asked*.

        Where the key has one principal alone, None asks for it. Raise `PermissionDenied`.
        """
        allowed = self._principals.get(key_id)
        if allowed is None or asked in allowed:
            return asked
        if asked is None and len(allowed) == 1:
            return next(iter(allowed))
        raise PermissionDenied(f"key {shown(key_id)} does not speak for {shown(asked)}")
