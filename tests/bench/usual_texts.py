"""The models of texts that people have, by name: small directories as each is published."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from reach_models import ATTEMPTS, write_class
from safetensors.torch import load_file, save_file
from support.models.language_models import make_writer
from support.models.quantised import quantise
from support.models.snapshots import (
    add_pooling,
    change_json,
    cut_in_two,
    make_snapshot,
    write_json,
    write_tokenizer,
)

WEIGHTS = "model.safetensors"
Step = Callable[[Path], object]


class Usual(NamedTuple):
    """How to write a model, and what a job says of it."""

    input: str
    steps: Sequence[Step]
    """They write and change the directory."""
    model: Mapping[str, Any]
    """Fields of the section, beside the path."""
    raw: str = ""
    """The table of classes of `reach.py` whose comparison it takes; '': the library check's."""
    file: str = ""
    """What of the directory is the model's path."""


def text(*steps: Step, raw: str = "", **model: Any) -> Usual:
    """Return a model of texts."""
    return Usual("text", steps, model, raw)


def of_class(name: str, input_name: str = "text", *, writes: bool = False, **sizes: Any) -> Step:
    """Return what writes a class of transformers at the first sizes that suit it."""

    def write(folder: Path) -> None:
        import transformers

        errors = []
        for attempt in ATTEMPTS[input_name]:
            try:
                cls = getattr(transformers, name)
                return write_class(folder, cls, input_name, {**attempt, **sizes}, writes=writes)
            except Exception as error:  # noqa: BLE001  # whatever the library raises
                errors.append(error)
        raise errors[0]

    return write


def config(**values: Any) -> Step:
    """Return what changes the configuration; None takes a value out."""
    return lambda folder: change_json(folder / "config.json", **values)


def settings(name: str, **values: Any) -> Step:
    """Return what writes another file of settings."""
    return lambda folder: write_json(folder / name, values)


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Step:
    """Return what changes the weights."""

    def write(folder: Path) -> None:
        changed = change(load_file(folder / WEIGHTS))
        save_file({k: v.contiguous() for k, v in changed.items()}, folder / WEIGHTS,
                  {"format": "pt"})  # fmt: skip

    return write


def in_dtype(dtype: torch.dtype) -> Step:
    """Return what stores the weights as another type."""
    return tensors(lambda given: {name: tensor.to(dtype) for name, tensor in given.items()})


def renamed(before: str, after: str) -> Step:
    """Return what names the tensors otherwise."""
    return tensors(lambda given: {k.replace(before, after): v for k, v in given.items()})


def as_bin(folder: Path) -> None:
    """Keep the weights in a pickle alone."""
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


def own_code(architecture: str, **values: Any) -> Step:
    """Return what names a class of the directory."""
    name = f"modeling.{architecture}"
    return config(architectures=[architecture], auto_map={"AutoModel": name}, **values)


def encoder(family: str, pooling: str = "mean", head: str = "none", **options: Any) -> Step:
    """Return what writes a directory of sentence-transformers."""
    return partial(make_snapshot, family=family, head=head, pooling=pooling, **options)


def classifier(family: str, *labels: str, head: str = "sequence", **options: Any) -> Step:
    """Return what writes a classifier."""
    names = {"id2label": dict(enumerate(labels)),
             "label2id": {label: number for number, label in enumerate(labels)}}  # fmt: skip
    return partial(make_snapshot, family=family, head=head, **names, **options)


def pooled(pooling: str, **options: Any) -> Step:
    """Return what makes a directory of sentence-transformers of a model."""
    return partial(add_pooling, pooling=pooling, **options)


def _lower_names(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Name norms as TensorFlow does, and add the head of the next sentence."""
    old = {k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
        "LayerNorm.bias", "LayerNorm.beta"): v for k, v in given.items()}  # fmt: skip
    more = {"cls.seq_relationship.weight": (2, 32), "cls.seq_relationship.bias": (2,)}
    return {**old, **{name: torch.zeros(shape) for name, shape in more.items()}}


def _of_library(folder: Path, make: Callable[[Any, Path], Any]) -> None:
    """Save what a function makes of a small BERT, without the classes that read tables."""
    make(make_snapshot(folder / "plain", "bert"), folder).save(str(folder))


def static(folder: Path) -> None:
    """Write vectors of tokens alone."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer

    write_tokenizer(folder / "base", "bert")
    tokenizer = Tokenizer.from_file(str(folder / "base" / "tokenizer.json"))
    tokenizer.no_truncation()
    vectors = torch.randn(tokenizer.get_vocab_size(), 16)
    modules = [StaticEmbedding(tokenizer, embedding_weights=vectors)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))


def potion(folder: Path) -> None:
    """Write what model2vec writes."""
    size = write_tokenizer(folder, "bert")
    write_json(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": ".",
         "type": "sentence_transformers.models.StaticEmbedding"},
        {"idx": 1, "name": "1", "path": "1_Normalize",
         "type": "sentence_transformers.models.Normalize"}])  # fmt: skip
    save_file({"embeddings": torch.randn(size, 16)}, folder / WEIGHTS)
    write_json(folder / "config.json", {"model_type": "model2vec", "normalize": True,
               "architectures": ["StaticModel"], "hidden_dim": 16, "apply_pca": 16,
               "apply_zipf": True, "seq_length": 1_000_000})  # fmt: skip


def splade(folder: Path) -> None:
    """Write a sparse encoder as the library saves it."""
    from sentence_transformers import SparseEncoder

    make_snapshot(folder / "plain", "bert", head="masked")
    SparseEncoder(str(folder / "plain"), device="cpu").save(str(folder))


def colbert(folder: Path) -> None:
    """Write ColBERT as its own library does."""
    make_snapshot(folder, "bert")
    weights = {f"bert.{name}": value for name, value in load_file(folder / WEIGHTS).items()}
    save_file({**weights, "linear.weight": torch.randn(8, 32)}, folder / WEIGHTS)
    change_json(folder / "config.json", architectures=["HF_ColBERT"])
    marks = {"query_token_id": "rain", "doc_token_id": "city", "mask_punctuation": True}
    write_json(folder / "artifact.metadata", {**marks, "doc_maxlen": 30, "query_maxlen": 32})


def pylate(folder: Path) -> None:
    """Write ModernBERT and a Dense module of tokens as PyLate does."""
    make_snapshot(folder, "modernbert")
    write_json(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Dense", "type": "pylate.models.Dense.Dense"},
    ])  # fmt: skip
    write_json(folder / "1_Dense" / "config.json", {
        "in_features": 32, "out_features": 8, "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity"})  # fmt: skip
    save_file({"linear.weight": torch.randn(8, 32)}, folder / "1_Dense" / WEIGHTS)
    write_json(folder / "config_sentence_transformers.json", {
        "model_type": "ColBERT", "prompts": {}, "query_length": 32, "document_length": 30,
        "attend_to_expansion_tokens": False, "skiplist_words": ["."]})  # fmt: skip


def dense_twice(folder: Path) -> None:
    """Put two Dense modules without a bias behind the pooling, as EmbeddingGemma has them."""
    kinds = ("Transformer", "Pooling", "Dense", "Dense", "Normalize")
    add_pooling(folder, "mean")
    write_json(folder / "modules.json", [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "",
         "type": f"sentence_transformers.models.{kind}"} for i, kind in enumerate(kinds)
    ])  # fmt: skip
    for at, (num_in, num_out) in {"2_Dense": (32, 48), "3_Dense": (48, 32)}.items():
        write_json(folder / at / "config.json", {
            "in_features": num_in, "out_features": num_out, "bias": False,
            "activation_function": "torch.nn.modules.linear.Identity"})  # fmt: skip
        save_file({"linear.weight": torch.randn(num_out, num_in)}, folder / at / WEIGHTS)


def two_towers(folder: Path) -> None:
    """Write CLIP as sentence-transformers has it, below a folder of its own."""
    make_snapshot(folder / "0_CLIPModel", "clip")
    write_json(folder / "modules.json", [
        {"idx": 0, "name": "0", "path": "0_CLIPModel",
         "type": "sentence_transformers.models.CLIPModel"}])  # fmt: skip


def lora(folder: Path) -> None:
    """Write an adapter alone."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "adapter_config.json", {"peft_type": "LORA", "r": 4, "lora_alpha": 8,
               "base_model_name_or_path": "someone/base"})  # fmt: skip
    save_file({"base_model.model.q.lora_A.weight": torch.zeros(4, 32)},
              folder / "adapter_model.safetensors")  # fmt: skip


def quantised(how: str) -> Step:
    """Return what quantises the weights: `awq`, `gptq` or another way of the helpers."""
    return partial(quantise, how=how)


def gguf(folder: Path) -> None:
    """Write a file of llama.cpp."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.gguf").write_bytes(b"GGUF" + bytes(64))


def writer(family: str, **options: Any) -> Step:
    """Return what writes a language model."""
    return partial(make_writer, family=family, **options)


WRITES: Mapping[str, Any] = {"task": "generate", "prompt": "Review: {text}"}
RANKS: Mapping[str, Any] = {"task": "score"}
TOXIC = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
ENTITIES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
SENTIMENTS = ("negative", "neutral", "positive")
NLI = ("contradiction", "neutral", "entailment")
QUERIES = {"query": "query: ", "document": ""}
BERT_NORMED = text(encoder("bert", normalize=True, max_seq_length=48))
BERT_CLS = text(encoder("bert", "cls", normalize=True))
ZERO_SHOT: Mapping[str, Any] = {"task": "zero_shot", "prompts": ("rain", "a dog")}

ENCODERS: Mapping[str, Usual] = {
    "all-MiniLM-L6-v2": BERT_NORMED,
    "all-mpnet-base-v2": text(encoder("mpnet", normalize=True, max_seq_length=48)),
    "paraphrase-multilingual-MiniLM-L12-v2": text(encoder("bert", max_seq_length=48)),
    "paraphrase-multilingual-mpnet-base-v2": text(encoder("xlm-roberta", max_seq_length=48)),
    "multi-qa-MiniLM-L6-cos-v1": BERT_NORMED,
    "bge-small-en-v1.5": BERT_CLS,
    "bge-large-en-v1.5": BERT_CLS,
    "bge-m3": text(encoder("xlm-roberta", "cls", normalize=True), as_bin),
    "e5-base-v2": BERT_NORMED,
    "multilingual-e5-large": text(encoder("xlm-roberta", normalize=True)),
    "gte-base": BERT_NORMED,
    "gte-base-en-v1.5": text(encoder("bert", "cls"), own_code("NewModel", model_type="new")),
    "gte-modernbert-base": text(encoder("modernbert", "cls")),
    "gte-Qwen2-1.5B-instruct": text(
        of_class("Qwen2Model", writes=True), pooled("lasttoken", normalize=True),
        config(auto_map={"AutoModel": "modeling_qwen.Qwen2Model"})),
    "e5-mistral-7b-instruct": text(
        of_class("MistralModel", writes=True), pooled("lasttoken", normalize=True)),
    "mxbai-embed-large-v1": text(
        encoder("bert", "cls", prompts={"query": "a query: ", "passage": ""}),
        in_dtype(torch.float16)),
    "nomic-embed-text-v1.5": text(
        of_class("NomicBertModel"), pooled("mean"),
        config(auto_map={"AutoModel": "nomic-ai/nomic-bert-2048--modeling.NomicBertModel"})),
    "Qwen3-Embedding-0.6B": text(
        of_class("Qwen3Model", writes=True), in_dtype(torch.bfloat16),
        pooled("lasttoken", normalize=True, prompts=QUERIES)),
    "Qwen3-Embedding-0.6B, tensors of model.": text(
        of_class("Qwen3Model", writes=True), tensors(lambda t: {f"model.{k}": t[k] for k in t}),
        config(architectures=["Qwen3ForCausalLM"]), pooled("lasttoken", normalize=True)),
    "embeddinggemma-300m": text(
        of_class("Gemma3TextModel", writes=True), config(use_bidirectional_attention=True),
        dense_twice),
    "snowflake-arctic-embed-m": text(encoder("bert", "cls", normalize=True, prompts=QUERIES)),
    "snowflake-arctic-embed-l-v2.0": text(encoder("xlm-roberta", "cls", normalize=True)),
    "jina-embeddings-v2-base-en": text(encoder("bert"), own_code("JinaBertModel")),
    "jina-embeddings-v3": text(encoder("xlm-roberta"), own_code("XLMRobertaLoRA")),
    "static-retrieval-mrl-en-v1": text(static),
    "potion-base-8M": text(potion),
    "LaBSE": text(encoder("bert", "cls", dense=32, normalize=True)),
    "distiluse-base-multilingual-cased-v2": text(encoder("distilbert", dense=16)),
    "sentence-t5-base": text(of_class("T5EncoderModel"), pooled("mean", dense=24, normalize=True)),
    "clip-ViT-B-32": text(two_towers),
    "splade-cocondenser-ensembledistil": text(
        partial(make_snapshot, family="bert", head="masked"), task="sparse"),
    "opensearch-neural-sparse-encoding-doc-v2": text(splade),
    "colbertv2.0": text(colbert),
    "answerai-colbert-small-v1": text(colbert),
    "GTE-ModernColBERT-v1": text(pylate),
    "bert-base-uncased": text(
        partial(make_snapshot, family="bert", head="masked"), tensors(_lower_names)),
    "roberta-base": text(partial(make_snapshot, family="roberta", head="masked")),
    "xlm-roberta-base": text(partial(make_snapshot, family="xlm-roberta", head="masked")),
    "ModernBERT-base": text(partial(make_snapshot, family="modernbert", head="masked")),
    "deberta-v3-base": text(
        partial(make_snapshot, family="deberta-v2"), config(architectures=None), as_bin),
}  # fmt: skip

CLASSIFIERS: Mapping[str, Usual] = {
    "ms-marco-MiniLM-L6-v2": text(
        classifier("bert", "LABEL_0"), **RANKS),
    "bge-reranker-v2-m3": text(classifier("xlm-roberta", "LABEL_0"), **RANKS),
    "mxbai-rerank-base-v1": text(classifier("deberta-v2", "LABEL_0"), **RANKS),
    "jina-reranker-v2-base-multilingual": text(
        classifier("xlm-roberta", "LABEL_0"), own_code("XLMRobertaFlash"), **RANKS),
    "Qwen3-Reranker-0.6B": text(
        writer("qwen2"), task="choices", choices=("yes", "no"),
        prompt="Is it relevant? {text}"),
    "distilbert-base-uncased-finetuned-sst-2-english": text(
        classifier("distilbert", "NEGATIVE", "POSITIVE")),
    "twitter-roberta-base-sentiment-latest": text(classifier("roberta", *SENTIMENTS), as_bin),
    "twitter-xlm-roberta-base-sentiment": text(classifier("xlm-roberta", *SENTIMENTS)),
    "finbert": text(classifier("bert", *SENTIMENTS), as_bin),
    "bert-base-multilingual-uncased-sentiment": text(
        classifier("bert", *(f"{stars} stars" for stars in range(1, 6)))),
    "toxic-bert": text(
        classifier("bert", *TOXIC, problem_type="multi_label_classification")),
    "roberta-base-go_emotions": text(
        classifier("roberta", *TOXIC, problem_type="multi_label_classification")),
    "bart-large-mnli": text(
        of_class("BartForSequenceClassification"), config(id2label=dict(enumerate(NLI)),
        label2id={name: number for number, name in enumerate(NLI)}), **ZERO_SHOT),
    "DeBERTa-v3-base-mnli-fever-anli": text(classifier("deberta-v2", *NLI[::-1]), **ZERO_SHOT),
    "bert-base-NER": text(classifier("bert", *ENTITIES, head="token")),
    "xlm-roberta-large-finetuned-conll03-english": text(
        classifier("xlm-roberta", *ENTITIES, head="token")),
    "piiranha-v1": text(classifier("deberta-v2", *ENTITIES, head="token")),
    "roberta-base-squad2": text(
        of_class("RobertaForQuestionAnswering"), raw="answers", task="raw"),
    "tapas-base-finetuned-wtq": text(
        of_class("TapasForQuestionAnswering"), settings(
            "tokenizer_config.json", tokenizer_class="TapasTokenizer"), task="raw"),
    "layoutlmv3-base": text(of_class("LayoutLMv3ForTokenClassification")),
}  # fmt: skip

WRITERS: Mapping[str, Usual] = {
    "Qwen2.5-0.5B-Instruct": text(writer("qwen2"), cut_in_two, **WRITES),
    "Qwen3-0.6B": text(of_class("Qwen3ForCausalLM", writes=True), **WRITES),
    "Qwen3-Next-80B-A3B": text(writer("qwen3_next"), **WRITES),
    "Qwen3-30B-A3B": text(of_class("Qwen3MoeForCausalLM", writes=True), **WRITES),
    "Llama-3.2-1B-Instruct": text(writer("llama"), in_dtype(torch.bfloat16), **WRITES),
    "Mistral-7B-Instruct-v0.3": text(writer("mistral"), **WRITES),
    "Mixtral-8x7B-Instruct": text(of_class("MixtralForCausalLM", writes=True), **WRITES),
    "gemma-2-2b-it": text(writer("gemma2"), **WRITES),
    "gemma-3-1b-it": text(writer("gemma3"), **WRITES),
    "Phi-3-mini-4k-instruct": text(
        of_class("Phi3ForCausalLM", writes=True),
        config(auto_map={"AutoModelForCausalLM": "modeling_phi3.Phi3ForCausalLM"}), **WRITES),
    "phi-4": text(of_class("Phi3ForCausalLM", writes=True), **WRITES),
    "SmolLM2-135M-Instruct": text(writer("llama"), **WRITES),
    "SmolLM3-3B": text(of_class("SmolLM3ForCausalLM", writes=True), **WRITES),
    "gpt-oss-20b": text(of_class("GptOssForCausalLM", writes=True), **WRITES),
    "OLMo-2-1B": text(of_class("Olmo2ForCausalLM", writes=True), **WRITES),
    "granite-3.3-2b-instruct": text(of_class("GraniteForCausalLM", writes=True), **WRITES),
    "falcon-7b-instruct": text(of_class("FalconForCausalLM", writes=True), **WRITES),
    "mamba-130m": text(writer("mamba"), **WRITES),
    "gpt2": text(
        writer("gpt2"), renamed("transformer.", ""),
        tensors(lambda t: {**t, "h.0.attn.bias": torch.ones(1, 1, 160, 160)}), **WRITES),
    "pythia-70m": text(writer("gpt_neox"), **WRITES),
    "bloom-560m": text(writer("bloom"), renamed("transformer.", ""), **WRITES),
    "opt-125m": text(writer("opt"), renamed("model.decoder", "decoder"), **WRITES),
    "DeepSeek-V3": text(
        of_class("DeepseekV3ForCausalLM", writes=True, num_key_value_heads=4), **WRITES),
    "flan-t5-base": text(writer("t5"), **WRITES),
    "bart-large-cnn": text(writer("bart"), **WRITES),
    "pegasus-xsum": text(writer("pegasus"), **WRITES),
    "opus-mt-en-de": text(of_class("MarianMTModel", writes=True), **WRITES),
    "nllb-200-distilled-600M": text(
        of_class("M2M100ForConditionalGeneration", writes=True), as_bin, **WRITES),
    "mbart-large-50": text(of_class("MBartForConditionalGeneration", writes=True), **WRITES),
    "a LoRA adapter": text(lora, **WRITES),
    "Qwen2.5-0.5B-Instruct-AWQ": text(writer("qwen2"), quantised("awq"), **WRITES),
    "Qwen2.5-0.5B-Instruct-GPTQ-Int4": text(writer("qwen2"), quantised("gptq"), **WRITES),
    "SmolLM2-135M-Instruct-GGUF": text(gguf, **WRITES),
}  # fmt: skip
