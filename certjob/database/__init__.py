"""PostgreSQL: connections that outlast a restart, transactions, statements by name, the schema."""

from certjob.database.clocks import read_clocks
from certjob.database.connections import (
    CONTENTION,
    NO_ANSWER,
    RUN_AGAIN,
    Connection,
    connect,
    connect_again,
    hang_up,
    hang_up_when_silent,
    is_gone,
    outlast_restarts,
    repeated,
)
from certjob.database.statements import (
    all_statements,
    clock,
    execute,
    fetch,
    fetch_value,
    persist,
    query,
    read_only_snapshot,
    sql_directory,
    transaction,
)

__all__ = [
    "CONTENTION",
    "NO_ANSWER",
    "RUN_AGAIN",
    "Connection",
    "all_statements",
    "clock",
    "connect",
    "connect_again",
    "execute",
    "fetch",
    "fetch_value",
    "hang_up",
    "hang_up_when_silent",
    "is_gone",
    "outlast_restarts",
    "persist",
    "query",
    "read_clocks",
    "read_only_snapshot",
    "repeated",
    "sql_directory",
    "transaction",
]
