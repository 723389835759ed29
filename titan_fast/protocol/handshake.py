"""How both sides prove they know the token without sending it.

Each proof is HMAC-SHA256(token, side | the peer's nonce | the master's nonce). The master proves first, so that a
peer never gives its proof to a stranger; the side's name keeps one proof from being played back as the other. After
RFC 5802 (SCRAM) and RFC 2104.
"""

from __future__ import annotations

import hmac

NONCE_BYTES = 32


def proof(token: str, side: str, peer_nonce: str, master_nonce: str) -> str:
    """``side`` is ``master`` or ``peer``; nonces are hex texts."""
    text = f"titan-fast 2|{side}|{peer_nonce}|{master_nonce}".encode()
    return hmac.new(token.encode(), text, "sha256").hexdigest()


def is_proof(given: str, token: str, side: str, peer_nonce: str, master_nonce: str) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(given.encode(), proof(token, side, peer_nonce, master_nonce).encode())


def is_nonce(text: str) -> bool:
    return len(text) == 2 * NONCE_BYTES and all(char in "0123456789abcdef" for char in text)
