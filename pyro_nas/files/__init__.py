"""Files: written whole or not at all, sealed by their digest, locked while they are written, and never unpickled."""

from pyro_nas.files.atomic import atomically, is_temporary, remove_temporaries, write_atomically, write_json
from pyro_nas.files.learned import load_state, state_of
from pyro_nas.files.locks import LOCK, locked
from pyro_nas.files.seals import Json, digest, read_sealed, read_tensors, write_sealed, write_tensors

__all__ = [
    "LOCK",
    "Json",
    "atomically",
    "digest",
    "is_temporary",
    "load_state",
    "locked",
    "read_sealed",
    "read_tensors",
    "remove_temporaries",
    "state_of",
    "write_atomically",
    "write_json",
    "write_sealed",
    "write_tensors",
]
