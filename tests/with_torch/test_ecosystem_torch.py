"""rag_torch's models under transformers' Trainer, accelerate and PEFT, as these are documented to
be used.

Needs `pip install "dualrag[torch,ecosystem]"`. `DUALRAG_ECOSYSTEM=1` says that it is installed:
nothing is left out.
"""

import copy
import os
import re
from pathlib import Path

import pytest
import torch

from rag_core import BartConfig, DPRConfig, RagConfig
from rag_core.outputs import RetrievAugLMMarginOutput
from rag_torch import RagSequenceForGeneration, RagTokenForGeneration
from rag_torch.trainer import RagTrainerMixin

if not os.environ.get("DUALRAG_ECOSYSTEM"):
    for package in ("transformers", "accelerate", "peft"):
        pytest.importorskip(package)

import accelerate
import peft
import transformers
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

DPR = DPRConfig(vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                max_position_embeddings=20)  # fmt: skip
BART = BartConfig(
    vocab_size=20, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
    encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=20, dropout=0.0,
)  # fmt: skip


class RagTrainer(RagTrainerMixin, Trainer):
    pass


class RagSeq2SeqTrainer(RagTrainerMixin, Seq2SeqTrainer):
    pass


@pytest.fixture
def model():
    torch.manual_seed(0)
    return RagTokenForGeneration(
        RagConfig.from_question_encoder_generator_configs(DPR, BART, n_docs=2)
    )


@pytest.fixture(scope="module")
def data():
    draw = torch.Generator().manual_seed(1)
    contexts = torch.randint(4, 20, (8, 2, 6), generator=draw)
    return [{"context_input_ids": each, "labels": each[0, :4]} for each in contexts]


def batch(rows):
    ids = torch.stack([row["context_input_ids"] for row in rows])  # (B, N, S)
    return {
        "context_input_ids": ids.flatten(0, 1),
        "context_attention_mask": torch.ones_like(ids).flatten(0, 1),
        "doc_scores": torch.zeros(ids.shape[:2]),
        "labels": torch.stack([row["labels"] for row in rows]),
    }


def arguments(kind, folder, **options):
    common = {
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "learning_rate": 0.01,
        "use_cpu": True,
    }
    quiet = {
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "logging_steps": 5,
    }
    return kind(str(folder), **common, **quiet, **options)


def same(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == other_name and torch.equal(a, b) for (name, a), (other_name, b) in pairs)


def test_trainer_trains_saves_resumes_evaluates_and_predicts(model, data, tmp_path):
    start = copy.deepcopy(model)
    options = arguments(TrainingArguments, tmp_path, max_steps=20, save_steps=10, gradient_accumulation_steps=2,
                        gradient_checkpointing=True)  # fmt: skip
    trainer = RagTrainer(model, options, train_dataset=data, eval_dataset=data, data_collator=batch)
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.8 * before
    predicted = trainer.predict(data, ignore_keys=["generator_enc_last_hidden_state", "logits"])
    assert (predicted.predictions.shape, predicted.label_ids.shape) == ((8, 2), (8, 4))
    opened = RagTokenForGeneration.from_pretrained(tmp_path / "checkpoint-20")
    assert same(opened, model)
    again = RagTrainer(start, options, train_dataset=data, data_collator=batch)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert again.state.global_step == 20
    assert same(start, model)  # what was left to do from there is what was done
    trainer.save_model(tmp_path / "final")
    assert same(RagTokenForGeneration.from_pretrained(tmp_path / "final"), model)
    smooth = arguments(TrainingArguments, tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing_factor must be 0, got 0\.1"):
        RagTrainer(model, smooth, train_dataset=data, data_collator=batch).train()


def test_seq2seq_trainer_predicts_what_generate_writes(model, data, tmp_path):
    options = arguments(Seq2SeqTrainingArguments, tmp_path, max_steps=2, predict_with_generate=True, eval_steps=2,
                        eval_strategy="steps", save_strategy="no")  # fmt: skip
    trainer = RagSeq2SeqTrainer(
        model, options, train_dataset=data, eval_dataset=data, data_collator=batch
    )
    trainer.train()
    predicted = trainer.predict(data[:4], max_length=6, num_beams=2).predictions
    given = {name: value for name, value in batch(data[:4]).items() if name != "labels"}
    written = model.eval().generate(**given, max_length=6, num_beams=2).numpy()
    assert (predicted[:, : written.shape[1]] == written).all()
    assert (predicted[:, written.shape[1] :] == BART.pad_token_id).all()


def test_accelerates_documented_loop_saves_and_loads(model, data, tmp_path):
    accelerator = accelerate.Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model, optimizer, loader = accelerator.prepare(
        model, optimizer, DataLoader(data, 4, collate_fn=batch)
    )
    for inputs in loader:
        outputs = model(**inputs, reduce_loss=True)
        accelerator.backward(outputs.loss)
        optimizer.step()
        optimizer.zero_grad()
        gathered = accelerator.gather_for_metrics(outputs)
        assert type(gathered) is RetrievAugLMMarginOutput and gathered.doc_scores.shape == (4, 2)
    accelerator.wait_for_everyone()
    bare = accelerator.unwrap_model(model)
    bare.save_pretrained(
        tmp_path / "model",
        is_main_process=accelerator.is_main_process,
        save_function=accelerator.save,
        state_dict=accelerator.get_state_dict(model),
    )
    assert same(RagTokenForGeneration.from_pretrained(tmp_path / "model"), bare)
    accelerator.save_state(tmp_path / "state")
    kept = copy.deepcopy(bare)
    with torch.no_grad():
        bare.get_input_embeddings().weight.zero_()
    accelerator.load_state(tmp_path / "state")
    assert same(bare, kept)
    with accelerate.init_empty_weights():
        empty = RagTokenForGeneration(bare.config)
    accelerate.load_checkpoint_and_dispatch(
        empty, str(tmp_path / "model" / "model.safetensors"), device_map={"": "cpu"}
    )
    assert same(empty, bare)
    assert empty.get_output_embeddings().weight is empty.get_input_embeddings().weight


def test_lora_around_the_model_trains_merges_and_is_saved(model, data, tmp_path):
    plain = copy.deepcopy(model)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
    learning = [name for name, each in adapted.named_parameters() if each.requires_grad]
    assert learning and all("lora_" in name and "generator" in name for name in learning)
    inputs = batch(data)
    optimizer = torch.optim.AdamW(
        [each for each in adapted.parameters() if each.requires_grad], lr=0.1
    )
    losses = []
    for _ in range(5):
        loss = adapted(**inputs, reduce_loss=True).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    adapted.save_pretrained(tmp_path / "adapter")
    want = adapted.eval()(**inputs).loss
    again = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    assert torch.equal(again(**inputs).loss, want)
    merged = again.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    opened = RagTokenForGeneration.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(opened(**inputs).loss, want, rtol=1e-5, atol=1e-5)


def test_a_generators_labels_are_smoothed_by_trainer(model, data, tmp_path):
    generator = model.generator

    def collate(rows):
        labels = torch.stack([row["labels"] for row in rows])
        fed = generator.prepare_decoder_input_ids_from_labels(labels)
        return {
            "input_ids": rows[0]["context_input_ids"],
            "labels": labels,
            "decoder_input_ids": fed,
        }

    options = arguments(
        Seq2SeqTrainingArguments,
        tmp_path,
        max_steps=1,
        label_smoothing_factor=0.1,
        save_strategy="no",
    )
    trainer = RagSeq2SeqTrainer(
        generator.eval(), options, train_dataset=data, data_collator=collate
    )
    inputs = collate(data[:2])
    got = trainer.compute_loss(generator, dict(inputs))
    logits = generator(**inputs).logits
    want = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), inputs["labels"].flatten(), label_smoothing=0.1
    )
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("table", ["shared", "embed_tokens", "word_embeddings"])
def test_token_tables_take_adapters(table, model, data):
    model = model.eval()
    adapted = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(r=2, target_modules=["q_proj", table])
    ).eval()
    question = {"input_ids": torch.tensor([[4, 5, 6], [7, 8, 1]])}
    encoder = adapted.get_base_model().question_encoder
    torch.testing.assert_close(encoder(**question)[0], model.question_encoder(**question)[0])
    torch.testing.assert_close(adapted(**batch(data)).loss, model(**batch(data)).loss)
    assert torch.equal(
        adapted.generate(**batch(data), max_length=5), model.generate(**batch(data), max_length=5)
    )


def test_prompts_are_tuned_and_layers_stay_whole(model, data):
    generator = model.generator
    options = {
        "task_type": "SEQ_2_SEQ_LM",
        "num_virtual_tokens": 3,
        "num_transformer_submodules": 2,
    }
    tuned = peft.get_peft_model(copy.deepcopy(generator), peft.PromptTuningConfig(**options))
    ids = data[0]["context_input_ids"]
    tuned(input_ids=ids, labels=ids[:, :4]).loss.backward()
    assert all(each.grad.abs().sum() > 0 for each in tuned.prompt_encoder.parameters())
    assert generator._no_split_modules == ["BartDecoderLayer", "BartEncoderLayer"]
    assert model._no_split_modules == ["BartDecoderLayer", "BartEncoderLayer", "BertLayer"]


@pytest.mark.parametrize("kind", [RagTokenForGeneration, RagSequenceForGeneration])
def test_peft_knows_the_heads_as_sequence_to_sequence_models(kind, model, data):
    head = kind(model.config)
    adapted = peft.get_peft_model(
        head, peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_2_SEQ_LM")
    ).eval()
    inputs = batch(data[:2])
    assert torch.equal(adapted(**inputs).loss, head(**inputs).loss)
    assert torch.equal(
        adapted.generate(**inputs, max_length=5), head.generate(**inputs, max_length=5)
    )


def test_transformers_generation_config_is_taken(model, data):
    given = {name: value for name, value in batch(data[:2]).items() if name != "labels"}
    options = {"num_beams": 2, "max_length": 5, "forced_eos_token_id": BART.eos_token_id}
    written = model.generate(**given, generation_config=transformers.GenerationConfig(**options))
    assert torch.equal(written, model.generate(**given, **options))


def test_the_documented_snippets_run(demo_cache, tmp_path, monkeypatch):
    text = (Path(__file__).parents[2] / "docs/moving-from-transformers.md").read_text("utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DUALRAG_HOME", str(demo_cache))
    names: dict = {}
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    for folder in ("run/checkpoint-4", "accelerated", "merged"):
        RagTokenForGeneration.from_pretrained(tmp_path / folder)
    assert (
        type(names["AutoTokenizer"].from_pretrained(tmp_path / "run/checkpoint-4")).__name__
        == "RagTokenizer"
    )
