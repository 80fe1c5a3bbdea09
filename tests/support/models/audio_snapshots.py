"""Small directories of audio models with random weights, as the library writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from support.models.snapshots import write_json, write_model

LABELS = ("bark", "bell", "rain")
TOKENS = ("<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefgh'.", "\u00fc", "ch", "N")
"""Vocabulary of those that transcribe: blank, special tokens, the end of a word, and letters."""
_WAVES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 4, 4),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    "classifier_proj_size": 16,
    "num_feat_extract_layers": 3,
}
_NORMALISED = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "feature_size": 1,
               "sampling_rate": 16_000, "do_normalize": True}  # fmt: skip
FAMILIES: Mapping[str, tuple[str, str, Mapping[str, Any], Mapping[str, Any]]] = {
    # family: prefix of the classes, head, configuration, feature extractor
    "wav2vec2": ("Wav2Vec2", "ForSequenceClassification", _WAVES, _NORMALISED),
    "wav2vec2 of layer norm": (
        *("Wav2Vec2", "ForSequenceClassification"),
        {**_WAVES, "feat_extract_norm": "layer", "do_stable_layer_norm": True},
        {**_NORMALISED, "return_attention_mask": True},
    ),
    "hubert": (
        *("Hubert", "ForSequenceClassification", _WAVES),
        {**_NORMALISED, "do_normalize": False},
    ),
    "wavlm": ("WavLM", "ForSequenceClassification", _WAVES, _NORMALISED),
    "ast": (
        *("AST", "ForAudioClassification"),
        {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "intermediate_size": 64, "num_mel_bins": 32, "max_length": 128},
        {"feature_extractor_type": "ASTFeatureExtractor", "num_mel_bins": 32, "max_length": 128,
         "mean": -4.2, "std": 4.5},
    ),
    "whisper": (
        *("Whisper", "ForAudioClassification"),
        {"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
         "decoder_layers": 1, "decoder_attention_heads": 4, "decoder_ffn_dim": 64,
         "num_mel_bins": 16, "max_source_positions": 100, "vocab_size": 60, "pad_token_id": 50,
         "bos_token_id": 51, "eos_token_id": 52, "decoder_start_token_id": 53},
        {"feature_extractor_type": "WhisperFeatureExtractor", "feature_size": 16,
         "chunk_length": 2, "sampling_rate": 16_000, "hop_length": 160, "n_fft": 400},
    ),
    "clap": (
        *("Clap", "Model"),
        {"audio_config": {"patch_embeds_hidden_size": 16, "hidden_size": 32, "depths": [1, 1],
                          "num_attention_heads": [2, 2], "window_size": 4, "spec_size": 64,
                          "num_mel_bins": 16, "patch_size": 2, "patch_stride": [2, 2]},
         "text_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                         "intermediate_size": 32, "vocab_size": 60},
         "projection_dim": 24},
        {"feature_extractor_type": "ClapFeatureExtractor", "feature_size": 16, "hop_length": 480,
         "max_length_s": 2, "sampling_rate": 48_000, "fft_window_size": 1024,
         "frequency_min": 50, "frequency_max": 14_000, "truncation": "rand_trunc",
         "padding": "repeatpad"},
    ),
}  # fmt: skip


def make_listener(folder: Path, family: str, head: str | None = None, **options: Any) -> Path:
    """Write a small directory of a family and return its path.

    Args:
        folder: Made if it is not there.
        family: One of FAMILIES.
        head: Ending of the class's name, such as `Model`; None: a classifier of LABELS.
        options: Of the configuration.
    """
    import transformers

    prefix, classifies, values, extractor = FAMILIES[family]
    labels: dict[str, Any] = {
        "id2label": dict(enumerate(LABELS)),
        "label2id": {n: i for i, n in enumerate(LABELS)},
    }
    if family == "clap" and head is not None:  # of one of its two models alone
        prefix, head = "ClapAudio", head.removeprefix("Audio")
        values = {**values["audio_config"], "projection_dim": values["projection_dim"]}
    config = getattr(transformers, f"{prefix}Config")(**{**values, **labels, **options})
    write_model(folder, getattr(transformers, prefix + (head or classifies)), config)
    write_json(folder / "preprocessor_config.json", extractor)
    return folder


def make_transcriber(folder: Path, family: str, **settings: Any) -> Path:
    """Write a small directory of a family that writes varied texts, and return its path.

    Args:
        settings: Of the tokenizer; None takes one out.
    """
    import torch
    import transformers

    make_listener(folder, family, "ForCTC", vocab_size=len(TOKENS), pad_token_id=0)
    write_json(folder / "vocab.json", {token: number for number, token in enumerate(TOKENS)})
    usual = {"tokenizer_class": "Wav2Vec2CTCTokenizer", "unk_token": "<unk>", "pad_token": "<pad>"}
    write_json(folder / "tokenizer_config.json", usual | settings)
    model = getattr(transformers, f"{FAMILIES[family][0]}ForCTC").from_pretrained(folder)
    drawn = torch.Generator().manual_seed(0)
    swell = torch.sin(torch.arange(16_000) / 700)
    with torch.no_grad():  # logits that differ from frame to frame, whatever the encoder gives
        frames = model.base_model(torch.randn(16_000, generator=drawn)[None] * swell)[0][0]
        spread = torch.linalg.svd(frames - frames.mean(0), full_matrices=False)
        likely = torch.randn(len(TOKENS), 16, generator=drawn) @ spread.Vh[:16]
        weights = 20 * likely / spread.S[:1]
        model.lm_head.weight.copy_(weights)
        model.lm_head.bias.copy_(-weights @ frames.mean(0))
    model.save_pretrained(folder)
    return folder
