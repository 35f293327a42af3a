"""The database of the queue: SQLite for one machine, PostgreSQL for any number of them."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from click.exceptions import Exit
from dbos import run_dbos_database_migrations
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateIndex, CreateTable

from foley.errors import ConfigError

SCHEMA = "dbos"  # in PostgreSQL; SQLite has none
# A machine that is cut off notices within seconds, and not after the hours that TCP would wait.
TIMEOUTS = {
    "connect_timeout": "3",
    "keepalives_idle": "3",
    "keepalives_interval": "1",
    "keepalives_count": "3",
    "tcp_user_timeout": "5000",  # milliseconds
}
POOL_SIZE = 5  # connections of a process, beside those of DBOS in the executor
POOL_SECONDS = 5.0
STATEMENT_MS = 10_000
IDLE_TRANSACTION_MS = 5_000  # a frozen process must not keep rows locked that others take over
_TABLE_NAMES = "SELECT name FROM sqlite_master WHERE type = 'table'"
# The file may be sound: it or its folder cannot be opened or written, or others hold it.
_UNUSABLE = frozenset(
    (
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_AUTH,
    )
)
_PRIMARY_CODE = 0xFF  # the other bits of a code say more about it
_MIGRATIONS = "dbos_migrations"  # DBOS makes it first
_TABLES_LOCK = 4_805_312_017  # any number; those who make our tables wait for one another


def prepare_database(database: Path | str) -> str:
    """Create or migrate the database; returns its URL.

    Args:
        database: file of SQLite, or the URL of PostgreSQL.

    Raises:
        ConfigError: PostgreSQL does not answer, or refuses. The message has no password. Or the
            file is damaged, of another program, or cannot be opened or written.
    """
    if isinstance(database, str):
        url = sa.make_url(database).set(drivername="postgresql")
        url = url.update_query_dict({**TIMEOUTS, **url.query})
        address = url.render_as_string(hide_password=False)
        try:
            run_dbos_database_migrations(address)
        except Exit as error:  # written for a command line: it has said why, and would exit
            cause = error.__context__
            reason = str(getattr(cause, "orig", cause)).strip().splitlines()[0]
            raise ConfigError(
                f"FOLEY_DATABASE_URL: {url.host}/{url.database} cannot be used ({reason[:200]}); "
                "start the database, and check the address, the user and the password"
            ) from error
        return address
    if database.is_dir():
        raise _refuse_file(database, "it is a folder")
    try:
        with closing(sqlite3.connect(database)) as connection:
            tables = {name for (name,) in connection.execute(_TABLE_NAMES)}
            if tables and _MIGRATIONS not in tables:
                raise _refuse_file(database, f"it has a table {min(tables)!r}, and none of a queue")
            # The file keeps this. Readers do not wait for a writer then. A write waits for the
            # disk.
            connection.execute("PRAGMA journal_mode=WAL")
        database.chmod(0o600)
        address = f"sqlite:///{database.absolute()}"
        run_dbos_database_migrations(address)
    except (sqlite3.Error, DBAPIError) as error:
        raise _explain(database, getattr(error, "orig", error)) from error
    except Exit as error:
        cause = error.__context__
        raise _explain(database, getattr(cause, "orig", cause)) from error
    return address


def _explain(database: Path, error: object) -> ConfigError:
    """Return the refusal of a file: it is no queue, or nobody can tell what is in it."""
    reason = str(error)
    if getattr(error, "sqlite_errorcode", 0) & _PRIMARY_CODE not in _UNUSABLE:
        return _refuse_file(database, reason)
    return ConfigError(
        f"FOLEY_JOBS_DIR: {database} cannot be used ({reason.splitlines()[0][:200]}); the file, "
        "its -wal, its -shm and their folder must be readable and writable for the service, on a "
        "disk with room"
    )


def _refuse_file(database: Path, reason: str) -> ConfigError:
    return ConfigError(
        f"FOLEY_JOBS_DIR: {database} is no queue of jobs ({reason.splitlines()[0][:200]}); put the "
        "file's last copy there, with its -wal, or move it away and begin with an empty queue"
    )


def open_engine(address: str) -> sa.Engine:
    """Return an engine whose statements find the tables of DBOS and ours by their bare names.

    Args:
        address: of `prepare_database`.
    """
    url = sa.make_url(address)
    if url.get_backend_name() == "sqlite":
        return sa.create_engine(url)
    limits = {
        "statement_timeout": STATEMENT_MS,
        "idle_in_transaction_session_timeout": IDLE_TRANSACTION_MS,
    }
    settings = {"search_path": SCHEMA, **limits}
    options = " ".join(f"-c{name}={value}" for name, value in settings.items())
    return sa.create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_pre_ping=True,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=POOL_SECONDS,
        connect_args={"options": options},
    )


def is_shared(engine: sa.Engine) -> bool:
    """Whether several machines may use the database."""
    return engine.dialect.name == "postgresql"


def create_table(engine: sa.Engine, table: sa.Table, indexes: Iterable[sa.Index] = ()) -> None:
    """Create a table of ours unless there is one.

    Args:
        engine: of the database.
        table: without its indexes.
        indexes: of the table.
    """
    with _begin_creating(engine) as connection:
        connection.execute(CreateTable(table, if_not_exists=True))
        for index in indexes:
            connection.execute(CreateIndex(index, if_not_exists=True))


def create_index(engine: sa.Engine, statement: str) -> None:
    """Create an index of ours on a table of DBOS, unless there is one.

    Args:
        engine: of the database.
        statement: that creates it if it does not exist.
    """
    with _begin_creating(engine) as connection:
        connection.execute(sa.text(statement))


@contextmanager
def _begin_creating(engine: sa.Engine) -> Iterator[sa.Connection]:
    with engine.begin() as connection:
        if is_shared(engine):  # two at once would make it twice, and one of them fail
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_TABLES_LOCK)))
        yield connection


def insert_if_absent(connection: sa.Connection, table: sa.Table, row: dict[str, Any]) -> None:
    """Insert a row unless there is one with its primary key.

    Args:
        connection: in a transaction.
        table: of the row.
        row: by names of columns.
    """
    insert = (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)
    connection.execute(insert.values(**row).on_conflict_do_nothing())
