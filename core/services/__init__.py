"""Where the rooms are put together: what the nodes and routes ask for, by what it serves.

    data            the database and the catalog
    files           the model files on disk: their hashes, what was downloaded
    hubs            CivitAI and Hugging Face: addresses, tokens, searches, the fetcher
    scanning        reading the model folders in the background
    prompts         what prompts say
    loras           which LoRAs a prompt takes; what the user says of LoRAs
    lora_fetching   the LoRAs of a plan, brought here and applied
    memory          the memory plan, the model pool, what ran out of memory before
    models          which model is used, and loading it
    tuning          sampling parameters, and what runs cost
    running         a plan run in the memory there is
    generating      the sampler: decide, run, save, record
    records         records, ratings and replays

Each module uses some of those above it, and none below.
"""

from __future__ import annotations

import os
from functools import lru_cache

from .. import host
from .data import Data
from .files import Files
from .generating import Generating, SamplerRequest
from .hubs import Hubs, lora_references, model_references
from .lora_fetching import LoraFetching
from .loras import Loras
from .memory import Memory
from .models import Models
from .prompts import Prompts
from .records import Records
from .running import Running
from .scanning import Scanning
from .tuning import Tuning

__all__ = ["SamplerRequest", "Services", "lora_references", "model_references", "services"]

DATABASE_URL = "INTELLIGENT_GENERATION_DATABASE_URL"
"""Environment variable with any SQLAlchemy URL; default: SQLite in the protected user folder."""


class Services:
    """The pack at work in one process. Safe to use from several threads."""

    def __init__(self, database_url: str) -> None:
        self.data = Data(database_url)
        self.files = Files(self.data)
        self.hubs = Hubs(self.data, self.files)
        self.scanning = Scanning(self.data, self.hubs)
        self.prompts = Prompts(self.data)
        self.loras = Loras(self.data, self.hubs, self.prompts)
        self.lora_fetching = LoraFetching(self.data, self.files, self.hubs, self.loras)
        self.memory = Memory(self.data)
        self.models = Models(self.data, self.files, self.hubs, self.memory, self.loras)
        self.tuning = Tuning(self.data)
        self.running = Running(self.files, self.memory, self.models)
        self.generating = Generating(self.data, self.files, self.loras, self.tuning, self.running)
        self.records = Records(self.data, self.files)


@lru_cache(maxsize=1)
def services() -> Services:
    """The one Services of this process."""
    url = os.environ.get(DATABASE_URL, "").strip()
    return Services(url or f"sqlite:///{host.user_directory() / 'intelligent_generation.db'}")
