"""PostgreSQL: connections, transactions, named statements, and the schema."""

from certjob.database.clocks import read_clocks
from certjob.database.connections import (
    CONTENTION,
    Connection,
    connect,
    connect_again,
    is_lost,
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
    stream,
    transaction,
)

__all__ = [
    "CONTENTION",
    "Connection",
    "all_statements",
    "clock",
    "connect",
    "connect_again",
    "execute",
    "fetch",
    "fetch_value",
    "is_lost",
    "persist",
    "query",
    "read_clocks",
    "read_only_snapshot",
    "sql_directory",
    "stream",
    "transaction",
]
