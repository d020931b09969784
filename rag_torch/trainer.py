"""What transformers' Trainer needs to save models that are not its own; nothing of it is imported
here.

class RagTrainer(RagTrainerMixin, Seq2SeqTrainer):
    pass
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from rag_torch import weights as tensors
from rag_torch.pretrained import PretrainedModel


class RagTrainerMixin:
    """Put in front of `Trainer` or `Seq2SeqTrainer`: checkpoints of a model of this package, whole
    and resumable.

    Trainer saves models that are not transformers' without their config, and stops at tied weights.
    With this, every checkpoint opens with `from_pretrained`, and
    `train(resume_from_checkpoint=True)` goes on from it. A loss for each question
    (`reduce_loss=False`) is averaged. Other models, as PEFT's, are saved as Trainer does.
    """

    accelerator: Any
    args: Any
    label_smoother: Any
    model: Any

    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        model = self._ours()
        if model is None:
            super()._save(output_dir, state_dict=state_dict)  # type: ignore[misc]
            return
        if state_dict is None:
            state_dict = model.state_dict()
        # Trainer's file format has no room for a tensor under two names.
        once = {name: state_dict[name] for name, _ in tensors.named_tensors(model)}
        super()._save(output_dir, state_dict=once)  # type: ignore[misc]
        if self.args.should_save:
            folder = Path(output_dir or self.args.output_dir)
            model._saved_config().save_pretrained(folder)
            options = model._saved_generation_config()
            if options is not None:
                # All of them: what was set to its default on purpose stays so.
                options.to_json_file(folder / "generation_config.json", use_diff=False)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """As Trainer's; a loss for each question is averaged.

        Raises:
            ValueError: `label_smoothing_factor` is set for a RAG model, whose tokens it would score
                against their own place.
        """
        own_loss = hasattr(getattr(self._ours(), "config", None), "label_smoothing")
        if self.label_smoother is not None and own_loss:
            raise ValueError(
                f"label_smoothing_factor must be 0, got {self.args.label_smoothing_factor}. The "
                "model has its own loss: set config.label_smoothing"
            )
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, **kwargs)  # type: ignore[misc]
        loss = loss.mean()
        if return_outputs:
            return loss, outputs
        return loss

    def _pad_tensors_to_max_len(self, tensor: Tensor, max_length: int) -> Tensor:
        model = self._ours()
        pad = None
        if model is not None:
            # Seq2SeqTrainer asks the model's config, and a RAG config keeps it in the generator's.
            pad = getattr(model.config, "generator", model.config).pad_token_id
        if pad is None:
            return super()._pad_tensors_to_max_len(tensor, max_length)  # type: ignore[misc]
        return F.pad(tensor, (0, max(0, max_length - tensor.shape[-1])), value=pad)

    def _ours(self) -> PretrainedModel | None:
        """The bare model, if it is one of this package."""
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if isinstance(model, PretrainedModel):
            return model
        return None
