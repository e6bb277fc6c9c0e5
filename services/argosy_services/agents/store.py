"""Runs in the SQL store: what was asked, every event, and what came from outside while they ran.

Who appends says where: an event is only taken if it is the next one. So two servers that work on one run find out at
the first event that they write, and because a tool with effects is written down before it is called, it is called by
one of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, Row, text

from argosy_services.agents import record
from argosy_services.agents.types import Outcome, Recorded, RunInfo, RunState
from argosy_services.errors import ArgosyError, Reason
from argosy_services.storage.database import Database
from argosy_services.storage.schema import Schema, migrate

SCHEMA = Schema(
    "agents",
    [
        """
CREATE TABLE agent_runs (
  run_id TEXT PRIMARY KEY, tenant TEXT NOT NULL, state TEXT NOT NULL, spec TEXT NOT NULL, error TEXT NOT NULL,
  outcome TEXT, answer TEXT, events BIGINT NOT NULL, created DOUBLE PRECISION NOT NULL,
  updated DOUBLE PRECISION NOT NULL
);
CREATE INDEX agent_runs_tenant ON agent_runs (tenant, run_id);
CREATE TABLE agent_events (
  run_id TEXT NOT NULL REFERENCES agent_runs (run_id) ON DELETE CASCADE, sequence BIGINT NOT NULL, key TEXT NOT NULL,
  seconds DOUBLE PRECISION NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (run_id, sequence)
);
CREATE TABLE agent_inputs (
  run_id TEXT NOT NULL REFERENCES agent_runs (run_id) ON DELETE CASCADE, key TEXT NOT NULL, body TEXT NOT NULL,
  PRIMARY KEY (run_id, key)
)
"""
    ],
)

# A run is abandoned where nobody has touched it for so long, beyond the time that it may wait for somebody.
ABANDONED_S = 7 * 86_400.0

_OVER = "tenant = :tenant AND (state = 'finished' OR updated < :abandoned)"
_COLUMNS = "run_id, state, spec, created, updated, error, events, outcome, answer"


class RunTakenError(Exception):
    """Another server works on the run, or its owner ended it: this one must stop."""


class RunStore:
    """The tables of runs. Every method raises STORE_UNAVAILABLE where the database cannot be used."""

    def __init__(
        self, database: Database, *, keep_runs: int = 10_000, wait_s: float = 86_400.0, shared: bool = False
    ) -> None:
        """`keep_runs` is how many runs of one owner are kept that are finished or abandoned; older ones are deleted.
        `wait_s` is how long a run waits for somebody, and leaves no event meanwhile. `shared` says that other processes
        use the same tables; those of a database that has a server may be anyway.
        """
        self._database = database
        self._keep_runs = keep_runs
        self._abandoned_s = wait_s + ABANDONED_S
        self.shared = shared or database.shared

    def prepare(self) -> None:
        """Makes the tables. Blocks. Raises SchemaTooNewError."""
        migrate(self._database, SCHEMA)

    async def create(self, info: RunInfo, tenant: str) -> None:
        """Notes a new run, and forgets the oldest of those that ended or were abandoned."""
        values = {
            "run_id": info.run_id,
            "tenant": tenant,
            "state": info.state.value,
            "spec": record.write_spec(info.spec),
            "created": info.created,
            "keep": self._keep_runs,
            "abandoned": time.time() - self._abandoned_s,
        }

        def work(connection: Connection) -> None:
            connection.execute(
                text(
                    "INSERT INTO agent_runs (run_id, tenant, state, spec, error, events, created, updated) "
                    "VALUES (:run_id, :tenant, :state, :spec, '', 0, :created, :created)"
                ),
                values,
            )
            connection.execute(
                text(
                    f"DELETE FROM agent_runs WHERE {_OVER} AND run_id < ("  # noqa: S608
                    f"SELECT run_id FROM agent_runs WHERE {_OVER} ORDER BY run_id DESC LIMIT 1 OFFSET :keep - 1)"
                ),
                values,
            )

        await self._database.write(work)

    async def append(
        self,
        run_id: str,
        events: Sequence[Recorded],
        state: RunState,
        *,
        outcome: Outcome | None = None,
        answer: str | None = None,
    ) -> None:
        """Adds events and notes the state after them: all of it, or nothing. Raises RunTakenError unless the first of
        them is the next one of a run that goes on.
        """
        rows = [_event_row(run_id, one) for one in events]
        values = {
            "run_id": run_id,
            "before": events[0].sequence - 1,
            "events": events[-1].sequence,
            "state": state.value,
            "outcome": outcome and outcome.value,
            "answer": answer and _storable(answer),
            "now": time.time(),
        }

        def work(connection: Connection) -> None:
            moved = connection.execute(
                text(
                    "UPDATE agent_runs SET events = :events, state = :state, updated = :now, error = '', "
                    "outcome = :outcome, answer = :answer "
                    "WHERE run_id = :run_id AND events = :before AND state <> 'finished'"
                ),
                values,
            )
            if moved.rowcount != 1:
                raise RunTakenError(run_id)
            connection.execute(
                text(
                    "INSERT INTO agent_events (run_id, sequence, key, seconds, kind, body) "
                    "VALUES (:run_id, :sequence, :key, :seconds, :kind, :body)"
                ),
                rows,
            )

        await self._database.write(work)

    async def interrupt(self, run_id: str, after: int, error: str) -> None:
        """Notes what stopped a run, unless somebody else has gone on with it since event `after`."""
        values = {"run_id": run_id, "events": after, "error": _storable(error), "now": time.time()}
        await self._database.write(
            lambda connection: connection.execute(
                text(
                    "UPDATE agent_runs SET state = 'interrupted', error = :error, updated = :now "
                    "WHERE run_id = :run_id AND events = :events AND state <> 'finished'"
                ),
                values,
            )
        )

    async def get(self, run_id: str, tenant: str) -> RunInfo:
        """One run. Raises RUN_NOT_FOUND, also for those of others."""
        if run_id != _storable(run_id):
            raise run_not_found(run_id)
        row = await self._database.read(
            lambda connection: connection.execute(
                text(f"SELECT {_COLUMNS} FROM agent_runs WHERE run_id = :run_id AND tenant = :tenant"),  # noqa: S608
                {"run_id": run_id, "tenant": tenant},
            ).one_or_none()
        )
        if row is None:
            raise run_not_found(run_id)
        return _info(row)

    async def list(self, tenant: str, *, before: str, limit: int) -> list[RunInfo]:
        """Runs from the newest to the oldest, of those that are older than run `before`."""
        values = {"tenant": tenant, "before": before, "limit": limit}
        rows = await self._database.read(
            lambda connection: connection.execute(
                text(
                    f"SELECT {_COLUMNS} FROM agent_runs WHERE tenant = :tenant "  # noqa: S608
                    "AND (:before = '' OR run_id < :before) ORDER BY run_id DESC LIMIT :limit"
                ),
                values,
            ).all()
        )
        return [_info(row) for row in rows]

    async def events(self, run_id: str, *, after: int = 0, limit: int = 1_000_000) -> list[Recorded]:
        """Events in their order, from the one behind `after` on."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                text(
                    "SELECT sequence, kind, body, key, seconds FROM agent_events "
                    "WHERE run_id = :run_id AND sequence > :after ORDER BY sequence LIMIT :limit"
                ),
                {"run_id": run_id, "after": after, "limit": limit},
            ).all()
        )
        return [Recorded(row.sequence, record.read_event(row.kind, row.body), row.key, row.seconds) for row in rows]

    async def put_input(self, run_id: str, key: str, body: str) -> bool:
        """Leaves something for a run; only the first under a key counts. Returns whether this was it."""
        inserted = await self._database.write(
            lambda connection: (
                connection.execute(
                    text(
                        "INSERT INTO agent_inputs (run_id, key, body) VALUES (:run_id, :key, :body) "
                        "ON CONFLICT DO NOTHING"
                    ),
                    {"run_id": run_id, "key": key, "body": body},
                ).rowcount
            )
        )
        return inserted == 1

    async def input(self, run_id: str, key: str) -> str | None:
        """What was left under a key. Raises RunTakenError where nothing will be, because the run is finished."""
        values = {"run_id": run_id, "key": key, "finished": RunState.FINISHED.value}

        def work(connection: Connection) -> str | None:
            body: str | None = connection.execute(
                text("SELECT body FROM agent_inputs WHERE run_id = :run_id AND key = :key"), values
            ).scalar_one_or_none()
            over = text("SELECT 1 FROM agent_runs WHERE run_id = :run_id AND state = :finished")
            if body is None and connection.execute(over, values).first() is not None:
                raise RunTakenError(run_id)
            return body

        return await self._database.read(work)


def run_not_found(run_id: str) -> ArgosyError:
    """No such run, or one of somebody else."""
    return ArgosyError(
        Reason.RUN_NOT_FOUND,
        f"there is no run '{run_id[:64]}' here; ListRuns or `argosy agent list` show those that are kept",
        run_id=run_id,
    )


def _storable(text: str) -> str:
    """A text that PostgreSQL takes, which knows no NUL. (In events, JSON escapes it.)"""
    return text.replace("\0", "\ufffd")


def _event_row(run_id: str, one: Recorded) -> dict[str, object]:
    kind, body = record.write_event(one.event)
    return {
        "run_id": run_id,
        "sequence": one.sequence,
        "key": one.key,
        "seconds": one.seconds,
        "kind": kind,
        "body": body,
    }


def _info(row: Row[tuple[object, ...]]) -> RunInfo:
    return RunInfo(
        run_id=row.run_id,
        state=RunState(row.state),
        spec=record.read_spec(row.spec),
        created=row.created,
        updated=row.updated,
        error=row.error,
        events=row.events,
        outcome=None if row.outcome is None else Outcome(row.outcome),
        answer=row.answer,
    )
