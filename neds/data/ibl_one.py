"""IBL sessions by their ids, through the ONE-api: find them in its cache, or fetch what is read.

`mode=local` uses the tables in `cache` (sessions.pqt, datasets.pqt) and no network. Otherwise the
database at `host` is asked and files that are not in the cache are fetched into it.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neds.data.alf_files import chosen, preferred
from neds.data.reader import needed
from neds_rt.errors import BadInput, StartError, one_line

if TYPE_CHECKING:
    from neds.data.ibl import IblOptions

LISTS = {f"paper-{part}": Path(__file__).parent / "lists" / f"neds_{part}_eids.txt"
         for part in ("train", "test")}
"""The NEDS paper's sessions: 74 that it trains on and ten that it holds out, as its authors list
them (data/PART_eids.txt of github.com/yzhang511/NEDS). Name for --eids -> file, an id a line."""

ACCOUNT = {"username": "intbrainlab", "password": "international"}  # of the open database
HERE = ("sessions that are here already: --set mode=local cache=FOLDER, or a session's folder in "
        "place of its id")


@lru_cache(maxsize=4)
def connection(mode: str, cache: str, host: str) -> Any:
    """ONE in its mode. Raises `BadInput` without the package or cache tables, `StartError` where
    the database does not answer."""
    api = needed("one.api", "ibl", "ibl reader")
    if mode not in ("local", "remote"):
        raise BadInput("ibl reader", "mode", repr(mode), "local or remote")
    try:
        if mode == "local":
            if not cache or not (Path(cache) / "sessions.pqt").is_file():
                raise BadInput(cache or "ibl reader", "cache", "no tables sessions.pqt, "
                               "datasets.pqt", "cache=FOLDER that ONE has filled, or that "
                               "one.alf.cache.make_parquet_db(FOLDER) has listed")
            return api.One(cache_dir=cache, mode="local")
        more = {"cache_dir": cache} if cache else {}
        return api.ONE(base_url=host, silent=True, mode="remote", **ACCOUNT, **more)
    except BadInput:
        raise
    except Exception as error:  # requests, ONE and pyarrow raise classes of their own
        raise StartError(one_line(
            f"ibl reader: {host} is needed and does not answer ({_short(error)}); {HERE}")) \
            from error


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def session_folder(source: str, options: IblOptions) -> Path:
    """The folder of a source, fetched if it is the id of a session that is not here.

    Raises `BadInput` for an id that the database or cache does not know and where the database
    stops answering, `StartError` where it does not answer at all.
    """
    if Path(source).is_dir():
        return Path(source)
    one = connection(options.mode, options.cache, options.host)
    try:
        folder = one.eid2path(source)
        if folder is None:
            raise BadInput(source, "session", "unknown id", "a folder in ALF, or an id that "
                           f"{options.cache or options.host} knows")
        if options.mode == "remote":
            _fetch(one, source, options.revision)
    except BadInput:
        raise
    except Exception as error:
        expected = f"an id that {options.cache} knows" if options.mode == "local" else \
            f"an id, and an answer of {options.host}; {HERE}"
        raise BadInput(source, "session", _short(error), expected) from error
    return Path(folder)


def _fetch(one: Any, eid: str, revision: str = "") -> None:
    """Fetch the files of a session that are read and not in the cache yet, of one sorting a probe.

    They are asked for by their whole paths, which name a revision too.
    """
    listed = [Path(str(name)) for name in one.list_datasets(eid)]
    names = [f.path.as_posix() for f in chosen(preferred(zip(listed, listed, strict=True),
                                                         revision))]
    one.load_datasets(eid, names, download_only=True, assert_present=False)
