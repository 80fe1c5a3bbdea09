"""Small language models, jobs of `choices` and `generate` over them, and what transformers says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from pipeline.core.failures import failure_columns
from pipeline.core.schema import TEXT
from pipeline.inference.engines import open_engine
from pipeline.job.model import Generate, Message, Model
from pipeline.job.transform import Text
from pipeline.models.resolving.resolve import resolve_model
from pipeline.models.spec import ModelSpec, PredictorConfig
from pipeline.preprocessing.model_input import BatchLimits, Limits
from support.models.snapshots import write_model
from support.models.tiny_tokenizer import byte_level
from support.runs.jobs import job_over

MAX_TOKENS = 160
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
TEXTS_OF_TOKENIZER = (
    "the cat sat on the mat and the dog did not like it at all",
    "Review: a good film\nSentiment: positive",
    "Review: a bad film\nSentiment: negative",
    "system user assistant: Is it good or bad? Answer in one word.",
)
_IDS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_SIZES = {
    **_IDS,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_TOKENS,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_BART = {
    **_IDS,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "max_position_embeddings": MAX_TOKENS,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
FAMILIES: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    # family: prefix of the library's classes, configuration
    "llama": ("Llama", {**_GROUPED, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", _GROUPED),
    "mistral": ("Mistral", {**_GROUPED, "sliding_window": 96}),
    "gemma2": ("Gemma2", {**_GROUPED, "head_dim": 8, "sliding_window": 96}),
    "gemma3": (
        "Gemma3",
        {**_GROUPED, "head_dim": 8, "sliding_window": 96, "sliding_window_pattern": 2},
    ),
    "gpt2": ("GPT2", {**_IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": MAX_TOKENS}),
    "gpt_neox": ("GPTNeoX", _SIZES),
    "opt": ("OPT", {**_SIZES, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    "bloom": ("Bloom", {**_IDS, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": ("Mamba", {**_IDS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
    "qwen3_next": (
        "Qwen3Next",
        {
            **{**_GROUPED, "num_hidden_layers": 4, "head_dim": 8, "moe_intermediate_size": 32},
            **{"num_experts": 4, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 32},
            **{"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2},
            "linear_num_value_heads": 4,
        },
    ),
    "t5": (
        "T5",
        {
            **_IDS,
            **{"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4},
            "decoder_start_token_id": 0,
        },
    ),
    "bart": ("Bart", _BART),
    "pegasus": ("Pegasus", {**_BART, "decoder_start_token_id": 0}),
    "bart_decoder": ("Bart", _BART),
}
SEQ2SEQ = ("t5", "bart", "pegasus")


def make_language_model(folder: Path, family: str, chat: str | None = CHAT, **options: Any) -> Path:
    """Write a small directory of a family and return its path.

    Args:
        folder: Made if it is not there.
        family: One of FAMILIES.
        chat: Its chat template; None: it has none.
        options: Of the configuration.
    """
    import transformers

    prefix, values = FAMILIES[family]
    size = write_language_tokenizer(folder, ends=family in SEQ2SEQ)
    is_part = hasattr(transformers, f"{prefix}TextConfig")
    config_name = f"{prefix}TextConfig" if is_part else f"{prefix}Config"
    config = getattr(transformers, config_name)(vocab_size=size, **{**values, **options})
    ending = "ForConditionalGeneration" if family in SEQ2SEQ else "ForCausalLM"
    names = (f"{prefix}{ending}", f"{prefix}LMHeadModel")
    cls = next(getattr(transformers, name) for name in names if hasattr(transformers, name))
    write_model(folder, cls, config)
    if chat is not None:
        (folder / "chat_template.jinja").write_text(chat)
    return folder


def write_language_tokenizer(
    folder: Path, *, ends: bool = True, control: Sequence[str] = ()
) -> int:
    """Save a byte-level BPE tokenizer, which begins a text with <s>, or ends it with </s>.

    Args:
        folder: Made if it is not there.
        ends: Whether it ends a text.
        control: Control tokens that come last.

    Returns:
        The number of its tokens.
    """
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = byte_level(TEXTS_OF_TOKENIZER * 4, _SPECIAL, 400)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>" if ends else "<s> $A", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer.add_special_tokens([*control])
    saved = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(_SPECIAL[3:]),
    )
    saved.save_pretrained(folder)
    return tokenizer.get_vocab_size()


def library_model(folder: Path) -> Any:
    """Load a directory with the library's own class for what it writes, in float32."""
    import torch
    import transformers

    is_seq2seq = transformers.AutoConfig.from_pretrained(folder).is_encoder_decoder
    auto = getattr(transformers, f"AutoModelFor{'Seq2SeqLM' if is_seq2seq else 'CausalLM'}")
    return auto.from_pretrained(folder, dtype=torch.float32).eval()


def library_scores(
    folder: Path, prompt: Sequence[int], answers: Sequence[Sequence[int]], model: Any = None
) -> Any:
    """Return the mean log-likelihood of each answer by one pass of the library, float64 (K,).

    Args:
        folder: The directory.
        prompt: Token ids.
        answers: Token ids of each.
        model: The library's; None: that of the folder, by its own class.
    """
    import numpy as np
    import torch

    model, scores = model or library_model(folder), []
    for answer in answers:
        ids, labels = torch.tensor([[*prompt]]), torch.tensor([[*answer]])
        with torch.inference_mode():
            if model.config.is_encoder_decoder:
                loss = model(input_ids=ids, labels=labels).loss
            else:  # the losses of decoders such as BART's do not shift labels
                logits = model(input_ids=torch.cat([ids, labels], 1)).logits[
                    0, len(prompt) - 1 : -1
                ]
                loss = torch.nn.functional.cross_entropy(logits.float(), labels[0])
        scores.append(-float(loss))
    return np.array(scores)


ENDS = (2, *range(100, 140))
"""Tokens that end the texts of random models: with one alone hardly any text would end."""
NEW_TOKENS = 24


def make_writer(folder: Path, family: str = "llama", **options: Any) -> Path:
    """Write a small directory of a family whose texts differ, and end at different lengths.

    The norms and biases of random models alone would decide most of what they write.
    """
    given = {"eos_token_id": [*ENDS], "tie_word_embeddings": False, **options}
    path = make_language_model(folder, family, **given)
    plain_norms(path)
    return path


def plain_norms(path: Path) -> None:
    """Make the norms of a directory's model ones, and its biases zeros."""
    import safetensors.torch
    import torch

    tensors = safetensors.torch.load_file(path / "model.safetensors")
    for name, values in tensors.items():
        if values.ndim == 1:
            tensors[name] = torch.full_like(values, float(name.endswith("weight")))
    safetensors.torch.save_file(tensors, path / "model.safetensors", {"format": "pt"})


def writing(
    path: Path, *, text: Text | None = None, generate: dict[str, Any] | None = None, **model: Any
) -> ModelSpec:
    """Return the model of a job; `Review: {text}` is the prompt unless it says another."""
    fields = {"path": str(path), "task": "generate", "prompt": "Review: {text}", **model}
    if fields.get("messages"):
        fields["messages"] = tuple(Message(**message) for message in fields["messages"])
        del fields["prompt"]
    options = Generate(**{"max_new_tokens": NEW_TOKENS, **(generate or {})})
    model_section = Model(**fields, generate=options)
    return resolve_model(job_over("text", model_section, text=text or Text()))


class Written(NamedTuple):
    """What the library writes."""

    text: str
    tokens: list[int]
    logprob: float


def library_outputs(
    folder: Path, prompts: Sequence[Sequence[int]], **options: Any
) -> list[Written]:
    """Write after prompts of token ids with the library's own `generate`, one by one."""
    import torch
    import transformers

    model, tokenizer = library_model(folder), transformers.AutoTokenizer.from_pretrained(folder)
    outputs = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        given = {"inputs": ids, "attention_mask": torch.ones_like(ids), **options}
        outputs.append(greedy(model, tokenizer, given))
    return outputs


def greedy(model: Any, tokenizer: Any, given: Mapping[str, Any]) -> Written:
    """Write to one row with `generate` of a model of the library, which is given these."""
    plain = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1}
    kept = {"return_dict_in_generate": True, "output_logits": True}
    done = model.generate(**{**plain, **kept, **given})
    tokens = done.sequences[0, -len(done.logits) :].tolist()
    pairs = zip(done.logits, tokens, strict=True)
    scores = [logits[0].log_softmax(0)[token] for logits, token in pairs]
    text = tokenizer.decode(tokens, skip_special_tokens=True)
    return Written(text, tokens, float(np.mean(scores)))


PROMPT = "Review: {text}\nSentiment:"
CHOICES = {"good": "positive", "bad": "negative", "neither": "not at all good or bad"}
MESSAGES = [
    {"role": "system", "content": "Answer in one word."},
    {"role": "user", "content": "Is it good or bad? {text}"},
]
LIMITS = BatchLimits(64, 256)
TEXTS = (
    "",
    "a good film",
    "the cat sat on the mat and the dog did not like it",
    "\N{GRINNING FACE} na\u00efve",
    "\u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd",
    " leading and trailing \n",
    "{{ text }} {text} {% for x in y %}",
)


def choosing(
    path: Path, text: Text | None = None, input_name: str = "text", **model: Any
) -> ModelSpec:
    """Return the model of a job; PROMPT and CHOICES unless it says others."""
    fields = {"path": str(path), "task": "choices", "choices": CHOICES, **model}
    if "messages" not in fields:
        fields.setdefault("prompt", PROMPT)
    fields["messages"] = tuple(fields.get("messages", ()))
    return resolve_model(job_over(input_name, Model(**fields), text=text or Text()))


def prepared(spec: ModelSpec, texts: Sequence[str]) -> pa.Table:
    """Return the prompts of texts, tokenised."""
    ids = [str(number) for number in range(len(texts))]
    column = pa.array([text.encode() for text in texts], pa.large_binary()).view(pa.large_string())
    failures = failure_columns([None] * len(texts))
    rows = pa.table({"row_id": ids, "uri": ids, TEXT: column, **failures})
    return spec.input.prepare(rows, {}, Limits(1 << 30, 1 << 30))


def predicted(
    spec: ModelSpec, rows: pa.Table, limits: BatchLimits = LIMITS
) -> list[dict[str, Any]]:
    """Predict prepared rows as a slice."""
    config = PredictorConfig(spec, limits.rows, 0.0, 1, pa.schema([]), batch_tokens=limits.tokens)
    return open_engine(config).predict(rows, {}).to_pylist()


def scores_of(row: dict[str, Any]) -> list[float]:
    """Return the scores of a row in the order of CHOICES."""
    score_by_label = {entry["label"]: entry["score"] for entry in row["top_k"]}
    return [score_by_label[label] for label in CHOICES]
