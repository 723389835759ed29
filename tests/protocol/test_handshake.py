"""Both sides prove the token to each other, and nothing on the wire helps who does not have it.

The master here says what a test has it say; the side that is dialled is at the end.
"""

from __future__ import annotations

import pytest

from titan_fast.errors import BadMessage, BadProof, Refused, UnexpectedMessage, WrongVersion
from titan_fast.protocol import messages as msg
from titan_fast.protocol.connection import Connection, send, send_error
from titan_fast.protocol.handshake import NONCE_BYTES, is_nonce, is_proof, proof
from titan_fast.protocol.opcodes import Op, Role
from titan_fast.protocol.opening import REQUEST, Opening, Reception

TOKEN = "s3cret-token-of-the-client"
OTHER = "another-token-altogether"
NONCE = "0123456789abcdef" * 4


class Peer:
    """A peer and every byte it sent."""

    def __init__(self, token=TOKEN, role="client", **known):
        self.connection = Connection(Role.MASTER)
        self.opening = Opening(self.connection, role, token, **known)
        self.sent = self.opening.hello()
        self.hello = self._said(self.sent)

    def hear(self, data):
        answer = b""
        for incoming in self.connection.receive(data):
            answer += self.opening.take(incoming)
        if self.connection.broken is not None:
            raise self.connection.broken
        self.sent += answer
        return self._said(answer) if answer else None

    @staticmethod
    def _said(data):
        (incoming,) = Connection(Role.STRANGER).receive(data)
        assert incoming.error is None
        return incoming.message


def challenge(peer, token=TOKEN, side="master", nonce=NONCE, peer_nonce=None):
    return answer(msg.Challenge(nonce, proof(token, side, peer_nonce or peer.hello.nonce, nonce)))


def answer(message, request=REQUEST):
    return send(message, request=request, is_reply=True)


def welcome(role="client", cluster="c"):
    return answer(msg.Welcome(role, cluster, 1, "s", 1 << 24, 1 << 27))


def test_both_prove_the_token():
    peer = Peer()
    assert is_nonce(peer.hello.nonce)
    given = peer.hear(challenge(peer))
    assert is_proof(given.proof, TOKEN, "peer", peer.hello.nonce, NONCE)
    assert peer.opening.welcome is None
    peer.hear(welcome())
    assert peer.opening.welcome.cluster == "c"
    assert peer.connection.receive(send(msg.Update(1, "x" * 10_000, "RUNNING", {}), request=5, is_reply=True))


def test_the_token_is_in_no_bytes():
    peer = Peer()
    from_master = challenge(peer)
    peer.hear(from_master)
    for form in (TOKEN.encode(), TOKEN.encode().hex().encode(), TOKEN[:8].encode()):
        assert form not in peer.sent + from_master


def test_a_master_with_another_token_gets_no_proof():
    peer = Peer()
    sent = peer.sent
    with pytest.raises(BadProof):
        peer.hear(challenge(peer, token=OTHER))
    assert peer.sent == sent


def test_a_peer_with_another_token_proves_nothing():
    peer = Peer(token=OTHER)
    given = peer.hear(challenge(peer, token=OTHER))
    assert not is_proof(given.proof, TOKEN, "peer", peer.hello.nonce, NONCE)


def test_a_proof_of_one_side_is_not_one_of_the_other():
    peer = Peer()
    with pytest.raises(BadProof):
        peer.hear(challenge(peer, side="peer"))
    mirrored = proof(TOKEN, "master", peer.hello.nonce, NONCE)
    assert not is_proof(mirrored, TOKEN, "peer", peer.hello.nonce, NONCE)


def test_a_peers_own_words_played_back_are_no_proof():
    first, second = Peer(), Peer()
    given = first.hear(challenge(first))
    with pytest.raises(BadProof):
        second.hear(answer(msg.Challenge(first.hello.nonce, given.proof)))


def test_a_proof_is_for_one_connection():
    first, second = Peer(), Peer()
    assert first.hello.nonce != second.hello.nonce
    with pytest.raises(BadProof):
        second.hear(challenge(first))
    given = first.hear(challenge(first))
    fresh = "f" * 64
    assert not is_proof(given.proof, TOKEN, "peer", first.hello.nonce, fresh)
    assert not is_proof(given.proof, TOKEN, "peer", second.hello.nonce, NONCE)


def test_nonces_cannot_be_shifted_into_each_other():
    assert proof(TOKEN, "peer", "ab", "c") != proof(TOKEN, "peer", "a", "bc")


def test_who_has_not_proved_itself_cannot_say_welcome():
    """Else anybody who listens on the port is handed the graphs and what is secret in them."""
    peer = Peer()
    with pytest.raises(UnexpectedMessage):
        peer.hear(welcome())
    assert peer.opening.welcome is None


def test_a_peer_answers_one_challenge():
    peer = Peer()
    peer.hear(challenge(peer))
    with pytest.raises(UnexpectedMessage):
        peer.hear(challenge(peer, nonce="e" * 64))


def test_a_peer_is_welcomed_once():
    peer = Peer()
    peer.hear(challenge(peer))
    peer.hear(welcome())
    with pytest.raises(UnexpectedMessage):
        peer.hear(welcome())


@pytest.mark.parametrize("nonce", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "0" * 62 + "|x", "０" * 64])
def test_a_bad_nonce_gets_no_proof(nonce):
    assert not is_nonce(nonce)
    peer = Peer()
    with pytest.raises(BadProof):
        peer.hear(challenge(peer, nonce=nonce))


def test_nonces_are_long_and_random():
    nonces = {Peer().hello.nonce for _ in range(50)}
    assert len(nonces) == 50
    assert all(len(bytes.fromhex(nonce)) == NONCE_BYTES for nonce in nonces)


@pytest.mark.parametrize(
    "data",
    [
        send(msg.Welcome("client", "c", 1, "s", 1, 1), request=REQUEST),
        answer(msg.Welcome("client", "c", 1, "s", 1, 1), request=REQUEST + 1),
        answer(msg.Accepted(1)),
        answer(msg.Update(1, "n", "RUNNING", {}, final=True)),
    ],
)
def test_anything_else_ends_the_handshake(data):
    peer = Peer()
    peer.hear(challenge(peer))
    with pytest.raises(UnexpectedMessage):
        peer.hear(data)


def test_a_welcome_as_somebody_else():
    peer = Peer(role="worker")
    peer.hear(challenge(peer))
    with pytest.raises(UnexpectedMessage, match="WELCOME as a 'client' for a worker"):
        peer.hear(welcome(role="client"))


def test_who_speaks_for_an_attempt_is_welcomed_as_its_task():
    peer = Peer(role="worker", fence=7)
    assert (peer.hello.token, peer.hello.fence) == ("worker", 7)
    peer.hear(challenge(peer))
    with pytest.raises(UnexpectedMessage, match="WELCOME as a 'worker' for a task"):
        peer.hear(welcome(role="worker"))
    peer.hear(welcome(role="task"))
    assert peer.opening.welcome.role == "task"


def test_a_welcome_of_another_cluster():
    peer = Peer(cluster="mine")
    peer.hear(challenge(peer))
    with pytest.raises(Refused, match="another cluster"):
        peer.hear(welcome(cluster="theirs"))


def test_a_master_that_chooses_another_version():
    peer = Peer()
    with pytest.raises(WrongVersion):
        peer.hear(answer(msg.Challenge(NONCE, proof(TOKEN, "master", peer.hello.nonce, NONCE), version=3)))


def test_a_refusal_is_raised_as_what_it_is():
    with pytest.raises(BadProof):
        Peer().hear(send_error(BadProof(), REQUEST))


def test_a_challenge_that_cannot_be_read():
    with pytest.raises(BadMessage, match="missing required field `proof`"):
        Peer().hear(answer(msg.Challenge(NONCE, "p")).replace(b'"proof"', b'"prooF"'))


# ---------------------------------------------------------------- the side that is dialled


def reception(token=TOKEN):
    return Reception(lambda hello: token if hello.token == "client" else "")


def heard(data, reception):
    """What the reception answers."""
    return b"".join(reception.take(incoming) for incoming in Connection(Role.STRANGER).receive(data))


def test_both_sides_understand_each_other():
    peer, master = Peer(), reception()
    proving = peer.hear(heard(peer.sent, master))
    assert not master.is_proved
    assert heard(send(proving, request=REQUEST), master) == b""
    assert master.is_proved
    assert master.hello == peer.hello


def test_a_reception_refuses_a_proof_of_another_token():
    master, peer = reception(), Peer(token=OTHER)
    heard(peer.sent, master)
    with pytest.raises(BadProof):
        heard(send(msg.Proof(proof(OTHER, "peer", peer.hello.nonce, NONCE)), request=REQUEST), master)
    assert not master.is_proved


def test_a_reception_never_says_the_same_twice():
    peer = Peer()
    assert heard(peer.sent, reception()) != heard(peer.sent, reception())


@pytest.mark.parametrize(
    ("hello", "error"),
    [
        (msg.Hello(NONCE, "worker"), BadProof),
        (msg.Hello("short", "client"), BadProof),
        (msg.Hello(NONCE, "client", oldest=3, newest=4), WrongVersion),
        (msg.Hello(NONCE, "client", oldest=1, newest=1), WrongVersion),
        (msg.Proof("0" * 64), UnexpectedMessage),
    ],
)
def test_a_reception_answers_no_other_hello(hello, error):
    master = reception()
    with pytest.raises(error):
        heard(send(hello, request=REQUEST), master)
    assert master.hello is None


def test_one_hello_and_one_proof_is_all_there_is_to_say():
    master, peer = reception(), Peer()
    answer = heard(peer.sent, master)
    with pytest.raises(UnexpectedMessage):
        heard(peer.sent, master)
    given = send(peer.hear(answer), request=REQUEST)
    heard(given, master)
    with pytest.raises(UnexpectedMessage):
        heard(given, master)


def test_why_a_hello_is_refused_is_the_owners_to_say():
    def token_of(hello):
        raise Refused(f"{hello.token}: not today")

    with pytest.raises(Refused, match="client: not today"):
        heard(Peer().sent, Reception(token_of))


# ---------------------------------------------------------------- proofs


@pytest.mark.parametrize("given", ["", "x", "0" * 64, "é", "\udcff", "\0" * 64, "x" * 3000])
def test_any_text_may_be_offered_as_a_proof(given):
    assert not is_proof(given, TOKEN, "peer", NONCE, NONCE)


def test_an_empty_token_is_never_proved():
    with pytest.raises(ValueError, match="empty token"):
        proof("", "peer", NONCE, NONCE)
    assert not is_proof("b" * 64, "", "peer", NONCE, NONCE)


def test_a_token_that_is_no_text_is_a_token_all_the_same():
    odd = "caf\udce9"
    assert is_proof(proof(odd, "peer", NONCE, NONCE), odd, "peer", NONCE, NONCE)


def test_the_proof_is_what_the_documentation_says():
    """A vector: clients in other languages check theirs against it."""
    assert Op.PROOF == 3
    assert proof("token", "peer", "0" * 64, "1" * 64) == VECTOR


VECTOR = "179be77172bd9794150bdc8ef8174fa4994154644d66016c8b10c00aa37ef866"
