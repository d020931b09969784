"""Functions and whole generations as TensorFlow graphs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rag_core.lazy import lazily

if TYPE_CHECKING:
    from rag_tf.graph.decoding import Decoded as Decoded
    from rag_tf.graph.decoding import sequence_graph as sequence_graph
    from rag_tf.graph.decoding import target_sums as target_sums
    from rag_tf.graph.decoding import token_graph as token_graph
    from rag_tf.graph.function import Graph as Graph
    from rag_tf.graph.function import clear_graphs as clear_graphs
    from rag_tf.graph.function import graph_memory as graph_memory
    from rag_tf.graph.function import once as once
    from rag_tf.graph.function import set_graph_memory as set_graph_memory
    from rag_tf.graph.loop import search_in_graph as search_in_graph
    from rag_tf.graph.loop import why_not as why_not
    from rag_tf.graph.rules import GraphRules as GraphRules
    from rag_tf.graph.text import TextGraph as TextGraph
    from rag_tf.graph.text import stripped as stripped
    from rag_tf.graph.text import tensorflow_text as tensorflow_text

__getattr__, __dir__, __all__ = lazily(
    __name__,
    {
        "decoding": ["Decoded", "sequence_graph", "target_sums", "token_graph"],
        "function": ["Graph", "clear_graphs", "graph_memory", "once", "set_graph_memory"],
        "loop": ["search_in_graph", "why_not"],
        "rules": ["GraphRules"],
        "text": ["TextGraph", "stripped", "tensorflow_text"],
    },
)
