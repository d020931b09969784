"""Embedding passages anew without a process and without a framework."""

import json
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from rag_core.training import reindex_process
from tests.support.knowledge_bases import hashed


class TurningEncoder:
    """An encoder whose vectors turn with its one weight, a number."""

    def __init__(self, weight=0.0):
        self.weight = weight

    def save_pretrained(self, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text("{}")
        (folder / "model.safetensors").write_text(str(self.weight))

    @classmethod
    def load(cls, folder, device=None):
        return cls(float((Path(folder) / "model.safetensors").read_text()))

    def embed(self, titles, texts, batch_size=32):
        vectors = hashed(titles, texts)
        return vectors + np.float32(self.weight) * np.roll(vectors, 1, axis=1)


TURNING = SimpleNamespace(load_encoder=TurningEncoder.load)


class Inline:
    """A process that has done its work when it is started: what it says is what a real one says."""

    def __init__(self, request, ends=()):
        """`ends` of those before the work is done: exit statuses of killed ones."""
        self.returncode = 0
        self.stdin, self.stdout = BytesIO(), BytesIO(b"{}")
        if ends:
            self.returncode = ends.pop(0)
            self.stdout = BytesIO()
            return
        try:
            reindex_process.embed_anew(json.loads(request.read_text()))
        except Exception as error:
            self.returncode = 1
            self.stdout = BytesIO(json.dumps(reindex_process.failure(error)).encode())

    def poll(self):
        return self.returncode

    def kill(self):
        pass

    def wait(self):
        return self.returncode
