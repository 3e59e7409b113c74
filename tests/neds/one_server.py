"""ONE with a folder in place of the database and the network: what is asked for is copied."""

import shutil

from one.alf.cache import make_parquet_db
from one.api import One


class FolderOne(One):
    """ONE that fetches from the session folders below `served` into `cache`.

    Tables, search, checks and the choice of datasets are ONE's own; `fetched` lists what was
    copied, relative to the session. `failing`: an error raised in place of copying.
    """

    def __init__(self, served, cache):
        make_parquet_db(served, hash_files=True)
        super().__init__(cache_dir=cache, tables_dir=served, mode="local")
        self.mode = "remote"
        self.served, self.fetched, self.failing = served, [], None

    @property
    def offline(self):
        return False

    def eid_of(self, subject):
        return str(self.search(subject=subject)[0])

    def _download_datasets(self, dsets, **kwargs):
        if self.failing is not None:
            raise self.failing
        return [self._copied(eid, record) for (eid, _), record in dsets.iterrows()]

    def _copied(self, eid, record):
        folder = self.eid2path(eid)
        source = self.served / folder.relative_to(self.cache_dir) / record["rel_path"]
        target = folder / record["rel_path"]
        target.parent.mkdir(parents=True, exist_ok=True)
        self.fetched.append(record["rel_path"])
        return shutil.copy(source, target)
