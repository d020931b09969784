"""Several processes of a run as threads of one."""

import threading
from collections import defaultdict

from rag_core.training.processes import Processes, ProcessLost


class Board:
    """Where threads leave what they tell each other."""

    def __init__(self):
        self.changed = threading.Condition()
        self.rounds = defaultdict(dict)  # number -> rank -> bytes
        self.gone = set()


class Threads(Processes):
    """A process that is a thread; `together` starts all."""

    def __init__(self, rank, count, board=None):
        self.rank, self.count = rank, count
        self._board, self._round = board, 0

    def exchange_bytes(self, data):
        assert isinstance(data, bytes)
        board, given = self._board, self._board.rounds[self._round]
        self._round += 1
        with board.changed:
            given[self.rank] = data
            board.changed.notify_all()
            board.changed.wait_for(lambda: len(given) == self.count or board.gone - set(given), 60)
        if len(given) < self.count:
            raise ProcessLost("another thread has ended")
        return [given[rank] for rank in range(self.count)]


def together(count, function):
    """What `function` returns or raises for each of so many `Processes`, by rank."""
    board = Board()
    ends = [None] * count

    def run(rank):
        try:
            ends[rank] = function(Threads(rank, count, board))
        except Exception as error:
            ends[rank] = error
        with board.changed:
            board.gone.add(rank)
            board.changed.notify_all()

    threads = [threading.Thread(target=run, args=[rank], daemon=True) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return ends
