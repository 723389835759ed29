"""Keys and artifacts as clients ask for them; the core decides about changes, the store lists what was published."""

from __future__ import annotations

from heapq import nsmallest
from typing import TYPE_CHECKING

from titan_fast.errors import NoSuchArtifact, NoSuchKey
from titan_fast.master.artifacts import is_digest
from titan_fast.master.session import Session
from titan_fast.master.store.base import ArtifactRow
from titan_fast.protocol import messages as msg
from titan_fast.scheduler.facts import ArtifactPublished

if TYPE_CHECKING:
    from titan_fast.master.server import Master

MAX_PAGE = 10_000


class Data:
    def __init__(self, master: Master) -> None:
        self._master = master

    def answer(self, session: Session, request: int, asked: msg.KvGet | msg.KvList | msg.ArtifactList) -> None:
        """Raises NoSuchKey, NoSuchArtifact."""
        reply = self._master.queries.reply
        match asked:
            case msg.KvGet():
                entry = self._master.scheduler.state.kv.get(asked.name)
                if entry is None:
                    raise NoSuchKey(asked.name)
                value = msg.KvValue(name=asked.name, revision=entry.revision, expires_at=entry.expires_at)
                reply(session, value, request, (entry.value,))
            case msg.KvList():
                reply(session, self._keys(asked), request)
            case msg.ArtifactList():
                reply(session, self._artifacts(asked), request)

    def _keys(self, asked: msg.KvList) -> msg.KvListed:
        kv = self._master.scheduler.state.kv
        limit = min(asked.limit, MAX_PAGE)
        # Every page looks at all keys; `limits.kv` bounds how many there are.
        names = nsmallest(limit + 1, (name for name in kv if name.startswith(asked.prefix) and name > asked.after))
        page = names[:limit]
        rows = tuple(msg.KvRow(name, len(kv[name].value), kv[name].revision, kv[name].expires_at) for name in page)
        return msg.KvListed(rows, page[-1] if len(names) > limit else "")

    def _artifacts(self, asked: msg.ArtifactList) -> msg.ArtifactListed:
        limit = min(asked.limit, MAX_PAGE)
        newer = {
            fact.name: ArtifactRow(fact.name, fact.digest, fact.size, fact.at)
            for batch in self._master.pump.committer.pending
            for fact in batch.facts
            if isinstance(fact, ArtifactPublished)
        }
        if asked.name:
            row = newer.get(asked.name) or self._master.store.artifact(asked.name)
            if row is None and is_digest(asked.name) and (size := self._master.blobs.size(asked.name)) >= 0:
                row = ArtifactRow(asked.name, asked.name, size, 0.0)
            if row is None:
                raise NoSuchArtifact(asked.name)
            return msg.ArtifactListed((_file(row),))
        found = {row.name: row for row in self._master.store.artifacts(asked.prefix, asked.after, limit + 1)}
        found.update((name, row) for name, row in newer.items() if name.startswith(asked.prefix) and name > asked.after)
        names = sorted(found)
        page = names[:limit]
        return msg.ArtifactListed(tuple(_file(found[name]) for name in page), page[-1] if len(names) > limit else "")


def _file(row: ArtifactRow) -> msg.ArtifactFile:
    return msg.ArtifactFile(row.name, row.digest, row.size, row.published_at)
