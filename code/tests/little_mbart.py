"""A folder laid out as facebook/mbart-large-cc25, with a tiny model and a SentencePiece model trained here."""

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

TEXTS = [
    "am tag scheint die sonne im süden und es wird warm .",
    "in der nacht regnet es im norden , am morgen schneit es in den alpen .",
    "morgen weht ein starker wind aus nordwest und an der küste gibt es sturm .",
    "und nun die wettervorhersage für morgen , freitag den dritten mai .",
    "im westen ist es wechselhaft mit schauern und gewittern , sonst bleibt es trocken .",
    "die temperaturen liegen zwischen zehn grad im norden und zwanzig grad am rhein .",
]
OTHERS = ["the quick brown fox jumps over the lazy dog", "voix ambiguë d'un cœur qui préfère les jattes de kiwis"]
GLOSSES = ["REGEN", "SCHNEE", "SONNE", "NORD", "SUED", "WIND", "MORGEN", "GEWITTER"]
SIZES = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
         "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 40}

# What the published files have, and this version of transformers would not write.
TIED = ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
OLD_KEYS = {"_num_labels": 3, "add_bias_logits": False, "add_final_layer_norm": True, "classif_dropout": 0.0,
            "gradient_checkpointing": False, "max_length": 1024, "normalize_before": True, "normalize_embedding": True,
            "num_beams": 5, "num_hidden_layers": 2, "output_past": True, "static_position_embeddings": False,
            "task_specific_params": {"translation_en_to_ro": {"decoder_start_token_id": 250020}}, "use_cache": True}


def pieces_model(texts: Iterable[str] = (*TEXTS, *OTHERS), size: int = 150) -> bytes:
    """A SentencePiece model with mBART's normalisation and numbers: <unk> 0, <s> 1, </s> 2."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*texts, *texts]), model_writer=model, vocab_size=size, model_type="unigram",
        normalization_rule_name="nmt_nfkc", hard_vocab_limit=False, character_coverage=1.0, minloglevel=2,
        num_threads=1)
    return model.getvalue()


def little_mbart(folder: Path, *, seed: int = 0, form: str = "safetensors", **config: Any) -> Path:
    """The folder; `form` is safetensors, or bin: weights and config as the published ones are."""
    import torch
    from transformers import MBartConfig, MBartForConditionalGeneration

    pieces = pieces_model()
    count = _pieces(pieces)
    torch.manual_seed(seed)
    shape: Mapping[str, Any] = {"vocab_size": count + 1 + 25 + 1, "scale_embedding": True, "init_std": 0.3,
                                "decoder_start_token_id": count + 1 + 14, **SIZES, **config}
    model = MBartForConditionalGeneration(MBartConfig(**shape)).eval()
    torch.nn.init.normal_(model.final_logits_bias)
    model.save_pretrained(folder)
    if form == "bin":
        (folder / "model.safetensors").unlink()
        (folder / "generation_config.json").unlink()
        state = {name: value for name, value in model.state_dict().items() if name not in TIED}
        torch.save(state, folder / "pytorch_model.bin")
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | OLD_KEYS))
    (folder / "sentencepiece.bpe.model").write_bytes(pieces)
    return folder


def _pieces(model: bytes) -> int:
    from sentencepiece import SentencePieceProcessor

    return SentencePieceProcessor(model_proto=model).get_piece_size()
