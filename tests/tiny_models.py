"""Tiny image-text models of real classes, made offline with random weights.

With their real processors and a chat template of the usual kind. A reply is
noise, but it depends on the prompt and on the picture as a real one does.
"""

import os
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>"
    "{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
    "{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# As some models have it: a system's turn is refused.
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}"
    "{{ raise_exception('no system turn') }}{% endif %}" + CHAT
)
_SPECIAL = [
    "<pad>",
    "<bos>",
    "<eos>",
    "<unk>",
    "<image>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
]
_SMALL = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=_SPECIAL,
    )
    tokenizer.train_from_iterator(["tiny product tokenizer"], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build(
    path: str | os.PathLike[str],
    kind: str = "clip-llama",
    chat: str | None = CHAT,
    seed: int = 0,
    context: int = 2048,
) -> str:
    """Saves a LLaVA.

    Args:
      path: directory to make.
      kind: "clip-llama" or "siglip-qwen2".
      chat: its chat template; None for none.
      seed: of its weights.
      context: the longest sequence it takes.

    Returns:
      `path`, as models are named.
    """
    import torch

    tokenizer = make_tokenizer()
    numbers = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = _SMALL | numbers | {"vocab_size": len(tokenizer)}
    text["max_position_embeddings"] = context
    size = {"height": 32, "width": 32}
    if kind == "clip-llama":
        vision = CLIPVisionConfig(
            **_SMALL, image_size=32, patch_size=8, projection_dim=32
        )
        processor = CLIPImageProcessorPil(
            size={"shortest_edge": 32}, crop_size=size
        )
        language, strategy, extra = LlamaConfig(**text), "default", 1
    else:
        vision = SiglipVisionConfig(**_SMALL, image_size=32, patch_size=8)
        processor = SiglipImageProcessorPil(size=size)
        text["num_key_value_heads"] = 2
        language, strategy, extra = Qwen2Config(**text), "full", 0
    config = LlavaConfig(
        vision_config=vision,
        text_config=language,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1,
    )
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config)
    # Spread out, so that which word is likeliest is not a matter of rounding.
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(20)
    model.save_pretrained(path)
    LlavaProcessor(
        image_processor=processor,
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=extra,
        chat_template=chat,
    ).save_pretrained(path)
    return os.fspath(Path(path))
