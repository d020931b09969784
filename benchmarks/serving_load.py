"""Many askers at once before `dualrag serve` with the demo: throughput against one at a time,
waiting times, memory, and whether everybody gets the answer that belongs to the question.

python -m benchmarks.serving_load                          50 askers, 10 minutes
python -m benchmarks.serving_load --backend tf --minutes 2 --askers 20 --out build/load.json

The questions are of every length that the demo's articles give, and each answer is compared with
the one that its question gets alone. Exit status 0 means that all were right.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from rag_core.demo import corpus_file, natural_questions, questions, read_articles

# Probabilities are computed in float32, in batches of other sizes.
_LOG_PROBABILITY = 1e-3
# Two answers whose probabilities differ by less may change places with the size of a batch.
_TIE = 1e-3
_OTHER_QUESTIONS = 150
_LONG_QUESTIONS = 20


def demo_questions(seed: int = 0) -> list[str]:
    """Questions in natural words, clues from articles, and some of many words."""
    rng = random.Random(seed)
    asked = [each["question"] for each in natural_questions()]
    articles = read_articles(corpus_file())
    rng.shuffle(articles)
    few = questions(articles[:_OTHER_QUESTIONS], frozenset())
    asked += [each["question"] for each in few][:_OTHER_QUESTIONS]
    asked += [
        "What is described by these words: " + " ".join(article.text.split()[:90])
        for article in articles[-_LONG_QUESTIONS:]
    ]
    return list(dict.fromkeys(asked))


class Server:
    """`dualrag serve` in a process of its own, whose memory is noted each second."""

    def __init__(self, *options: str) -> None:
        command = [sys.executable, "-m", "rag_core.cli", "serve", "--port", "0", *options]
        self._process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        said = ""
        assert self._process.stderr is not None  # noqa: S101
        for line in self._process.stderr:
            said += line
            if found := re.search(r"http://[\d.]+:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError(f"the server did not start: {said}")
        threading.Thread(target=self._process.stderr.read, daemon=True).start()
        self.memory: list[tuple[float, float]] = []  # seconds, MB
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        status = Path(f"/proc/{self._process.pid}/status")
        while self._process.poll() is None:
            if found := re.search(r"VmRSS:\s+(\d+) kB", status.read_text()):
                self.memory.append((time.monotonic(), int(found[1]) / 1000))
            time.sleep(1)

    def end(self) -> None:
        """Stops it."""
        self._process.terminate()
        self._process.wait(60)


class Asker:
    """One client, which keeps its connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ask(self, question: str) -> tuple[int, Any]:
        """Status, and what came."""
        body = json.dumps({"question": question})
        self._connection.request("POST", "/answer", body, {"Content-Type": "application/json"})
        reply = self._connection.getresponse()
        return reply.status, json.loads(reply.read())


@dataclass
class Tally:
    """What happened to the requests of a run.

    Attributes:
        seconds: of each that was answered.
        refused: those answered 429.
        late: those that were stopped at their deadline.
        wrong: what was not the answer that the question gets alone.
        ties: answers that are another one of the same probability.
        took: seconds of the run.
    """

    seconds: list[float] = field(default_factory=list)
    refused: int = 0
    late: int = 0
    wrong: list[str] = field(default_factory=list)
    ties: int = 0
    took: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.took

    def percentile(self, share: float) -> float:
        """Seconds within which such a share of the answers came."""
        return float(np.percentile(self.seconds, share))


def judge(tally: Tally, question: str, status: int, reply: Any, alone: dict[str, Any]) -> None:
    """Note how an answer compares with the one that was given to its question alone."""
    if status == 429:
        tally.refused += 1
        return
    if status == 504:
        tally.late += 1
        return
    if status != 200:
        tally.wrong.append(f"{status} {reply} for {question!r}")
        return
    found, wanted = reply["answers"][0], alone[question]
    differ = abs(found["log_probability"] - wanted["log_probability"])
    ids = [[each["id"] for each in answer["passages"]] for answer in (found, wanted)]
    if found["question"] != question or ids[0] != ids[1]:
        tally.wrong.append(f"the passages of another question for {question!r}")
    elif found["text"] == wanted["text"] and differ < _LOG_PROBABILITY:
        return
    elif differ < _TIE:
        tally.ties += 1
    else:
        tally.wrong.append(f"{found['text']!r} instead of {wanted['text']!r} for {question!r}")


def one_at_a_time(port: int, asked: list[str]) -> tuple[Tally, dict[str, Any]]:
    """Each question alone: what is compared with, and the rate of a single asker."""
    asker, tally, alone = Asker(port), Tally(), {}
    for question in asked[:4]:  # what is made at the first calls
        asker.ask(question)
        asker.ask(question)
    began = time.monotonic()
    for question in asked:
        sent = time.monotonic()
        status, reply = asker.ask(question)
        if status != 200:
            raise RuntimeError(f"{question!r} alone: {status} {reply}")
        tally.seconds.append(time.monotonic() - sent)
        alone[question] = reply["answers"][0]
    tally.took = time.monotonic() - began
    return tally, alone


def together(
    port: int, asked: list[str], alone: dict[str, Any], askers: int, minutes: float
) -> Tally:
    """So many askers at once, each of whom asks again as soon as the answer is there."""
    tally, lock = Tally(), threading.Lock()
    began = time.monotonic()
    until = began + 60 * minutes

    def go(number: int) -> None:
        asker, rng = Asker(port), random.Random(number)
        while time.monotonic() < until:
            question = rng.choice(asked)
            sent = time.monotonic()
            status, reply = asker.ask(question)
            seconds = time.monotonic() - sent
            with lock:
                judge(tally, question, status, reply, alone)
                if status == 200:
                    tally.seconds.append(seconds)
            if status == 429:
                time.sleep(1)

    threads = [threading.Thread(target=go, args=(number,)) for number in range(askers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    tally.took = time.monotonic() - began
    return tally


def growth(memory: list[tuple[float, float]], began: float) -> tuple[float, float]:
    """MB of the fifth of a run after its first fifth, and of its last: medians."""
    of_run = [megabytes for seconds, megabytes in memory if seconds >= began]
    fifth = max(1, len(of_run) // 5)
    return float(np.median(of_run[fifth : 2 * fifth])), float(np.median(of_run[-fifth:]))


def measured(asked: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """One run, as it is written down."""
    texts = demo_questions()
    server = Server("--backend", asked.backend, *asked.serve.split())
    try:
        say(f"{len(texts)} questions one at a time ...")
        single, alone = one_at_a_time(server.port, texts)
        say(f"{single.rate:.2f} a second; now {asked.askers} askers, {asked.minutes:g} minutes ...")
        began = time.monotonic()
        many = together(server.port, texts, alone, asked.askers, asked.minutes)
        early, late = growth(server.memory, began)
    finally:
        server.end()
    return {
        "backend": asked.backend,
        "askers": asked.askers,
        "minutes": asked.minutes,
        "questions": len(texts),
        "one_at_a_time": {
            "rate": single.rate,
            "p50": single.percentile(50),
            "p99": single.percentile(99),
        },
        "together": {
            "answers": len(many.seconds),
            "rate": many.rate,
            **{f"p{share}": many.percentile(share) for share in (50, 95, 99)},
            "refused": many.refused,
            "late": many.late,
            "wrong": many.wrong,
            "ties": many.ties,
        },
        "memory_mb": {
            "early": early,
            "late": late,
            "growth": late / early - 1,
            "every_20_s": [round(megabytes) for _, megabytes in server.memory[::20]],
        },
        "machine": machine.describe(),
    }


def line(run: dict[str, Any]) -> str:
    """The run as a row of the table in docs/serving.md."""
    single, many, memory = run["one_at_a_time"], run["together"], run["memory_mb"]
    cells = [
        run["backend"],
        f"{run['askers']} x {run['minutes']:g} min",
        f"{many['answers']:,}",
        f"{single['rate']:.2f}",
        f"{many['rate']:.2f} ({many['rate'] / single['rate']:.2f}x)",
        " / ".join(f"{many[name]:.1f}" for name in ("p50", "p95", "p99")),
        f"{memory['early']:.0f} -> {memory['late']:.0f} ({memory['growth']:+.1%})",
        f"{many['refused']} / {many['late']} / {len(many['wrong'])}",
    ]
    return f"| {' | '.join(cells)} |"


def main(given: list[str] | None = None) -> int:
    """Run what was asked for; 0 if every answer was right."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving_load",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--backend", choices=("torch", "tf"), default="torch")
    parser.add_argument("--askers", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--serve", default="", help="further options of dualrag serve")
    parser.add_argument("--out", type=Path, help="results file, .json")
    asked = parser.parse_args(given)
    run = measured(asked, lambda text: print(text, file=sys.stderr, flush=True))
    if asked.out is not None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(run, indent=1))
    print(line(run))
    for fault in run["together"]["wrong"][:20]:
        print(fault)
    return bool(run["together"]["wrong"])


if __name__ == "__main__":
    sys.exit(main())
