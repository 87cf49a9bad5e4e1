"""Studies: the commands, each a question asked of this package. The only wing that imports models and inference."""

from pyro_nas.studies.search.saved_run import SavedRun, load_run

__all__ = ["SavedRun", "load_run"]
