"""A service of one's own: answers with their sources as an endpoint among others of a FastAPI app.

pip install '.[torch,serve]'         # in a checkout
python examples/fastapi_service.py   # then open http://127.0.0.1:8000/docs, or
curl -H 'Content-Type: application/json' -d '{"question": "Which planet has rings?"}' http://127.0.0.1:8000/help

The model is loaded once, when the app starts; FastAPI runs each request in a thread of its pool, and a
model may be asked by several at a time. `dualrag serve` is a whole server: it gathers requests into batches,
ends searches that nobody waits for, and speaks the protocol of OpenAI's clients.
"""

import argparse
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel, Field

from rag_core import RagRetriever
from rag_core.backends import load_backend

MODEL = "dualrag/demo"


class Ask(BaseModel):
    question: Annotated[str, Field(min_length=1, max_length=500)]


class Source(BaseModel):
    words: str  # of the answer
    passage: str
    where: str
    probability: float


class Help(BaseModel):
    text: str
    sources: list[Source]


def create_app(backend=None):
    """The app, with the model of that framework; None is the one installed."""

    @asynccontextmanager
    async def lifespan(app):
        rag = load_backend(backend)
        retriever = RagRetriever.from_pretrained(MODEL)
        app.state.model = rag.AutoModel.from_pretrained(MODEL, retriever=retriever)
        yield

    app = FastAPI(title="Help desk", lifespan=lifespan)

    @app.post("/help")
    def answer_with_sources(ask: Ask, request: Request) -> Help:
        try:
            [answer] = request.app.state.model.answer(ask.question, num_beams=4)
        except ValueError as error:  # a question without a word, for one
            raise HTTPException(422, str(error)) from error
        sources = [
            Source(
                words=citation.text,
                passage=answer.passages[citation.passage].text,
                where=answer.passages[citation.passage].origin,
                probability=citation.probability,
            )
            for citation in answer.citations()
        ]
        return Help(text=answer.text, sources=sources)

    return app


def main(arguments=None):
    import uvicorn

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--backend", choices=["torch", "tf"], help="default: what is installed")
    options = parser.parse_args(arguments)
    uvicorn.run(create_app(options.backend), port=options.port)


if __name__ == "__main__":
    main()
