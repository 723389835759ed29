"""How both sides prove they know the token without sending it.

Each proof is HMAC-SHA256(token, side | the peer's nonce | the master's nonce). The master proves first, so that a
peer never gives its proof to a stranger; the side's name keeps one proof from being played back as the other. After
RFC 5802 (SCRAM) and RFC 2104.
"""

from __future__ import annotations

import hmac

NONCE_BYTES = 32


def proof(token: str, side: str, peer_nonce: str, master_nonce: str) -> str:
    """``side`` is ``master`` or ``peer``; nonces are hex texts.

    Raises:
        ValueError: the token is empty, which everybody knows.
    """
    if not token:
        raise ValueError("an empty token proves nothing")
    text = f"titan-fast 2|{side}|{peer_nonce}|{master_nonce}".encode("utf-8", "surrogatepass")
    # A token from the environment may hold bytes that are no text; they still are a key.
    return hmac.new(token.encode("utf-8", "surrogatepass"), text, "sha256").hexdigest()


def is_proof(given: str, token: str, side: str, peer_nonce: str, master_nonce: str) -> bool:
    """Compared in constant time. An empty token is never proved."""
    if not token:
        return False
    expected = proof(token, side, peer_nonce, master_nonce)
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), expected.encode())


def is_nonce(text: str) -> bool:
    return len(text) == 2 * NONCE_BYTES and all(char in "0123456789abcdef" for char in text)
