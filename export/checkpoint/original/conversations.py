"""The conversations of LLaVA's and InternVL's original code as chat templates.

LLaVA's code picks one by the model's name. Tokenizer and decoder of a checkpoint tell more
reliably which it is: by the tokens that mark its turns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["INTERNVL_2_5", "Conversation", "conversation_of"]

_PICTURE = "{PICTURE}"
_TEXT = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ part['text'] }}{% endfor %}"
)
# Pictures first, wherever they stand in a message: so does LLaVA's code.
_CONTENT = (
    "{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}"
    "{{ '{PICTURE}\n' }}{% endfor %}"
    "{% for part in message['content'] | selectattr('type', 'equalto', 'video') %}"
    "{{ '<video>\n' }}{% endfor %}" + _TEXT
)
# Each in its place: InternVL is trained on pictures between the words.
_CONTENT_IN_ORDER = (
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '{PICTURE}\n' }}"
    "{% elif part['type'] == 'video' %}{{ '<video>\n' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
)
_VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user\\'s questions."
)
_LLAMA_3_SYSTEM = (
    "You are a helpful language and vision assistant. You are able to understand the visual "
    "content that the user provides, and assist the user with a variety of tasks using natural "
    "language."
)
_INTERNVL_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、"  # noqa: RUF001 - as it is
    "清华大学及多家合作单位联合开发的多模态大语言模型。"
)


@dataclass(frozen=True)
class Conversation:
    """One way to write a conversation.

    Attributes:
        name: What the original code calls it.
        source: Jinja, with ``{PICTURE}`` where the text of a picture stands.
        end: The token that ends a turn; None where it is the tokenizer's end of sequence.
    """

    name: str
    source: str
    end: str | None = None

    def template(self, picture: str) -> str:
        """The chat template with ``picture`` as the text of a picture."""
        return self.source.replace(_PICTURE, picture)


_VICUNA = Conversation(
    "vicuna_v1",
    f"{{% if messages[0]['role'] != 'system' %}}{{{{ '{_VICUNA_SYSTEM} ' }}}}{{% endif %}}"
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}{{ 'ASSISTANT: ' }}" + _CONTENT + "{{ '</s>' }}"
    "{% else %}"
    "{% if message['role'] != 'system' %}{{ 'USER: ' }}{% endif %}" + _CONTENT + "{{ ' ' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
)
_MISTRAL = Conversation(
    "mistral_instruct",
    "{% set given = namespace(system='') %}"
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}"
    "{% set given.system %}{{ '<<SYS>>\n' }}" + _TEXT + "{{ '\n<</SYS>>\n\n' }}{% endset %}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' }}" + _CONTENT + "{{ ' </s>' }}"
    "{% else %}{{ '[INST] ' + given.system }}" + _CONTENT + "{{ ' [/INST]' }}"
    "{% set given.system = '' %}{% endif %}{% endfor %}",
)


def _marked(
    name: str,
    system: str,
    start: str,
    middle: str,
    end: str,
    behind: str,
    content: str = _CONTENT,
) -> Conversation:
    """A conversation whose turns stand between tokens."""
    return Conversation(
        name,
        f"{{% if messages[0]['role'] != 'system' %}}"
        f"{{{{ '{start}system{middle}{system}{end}{behind}' }}}}{{% endif %}}"
        "{% for message in messages %}"
        f"{{{{ '{start}' + message['role'] + '{middle}' }}}}{content}{{{{ '{end}{behind}' }}}}"
        "{% endfor %}"
        f"{{% if add_generation_prompt %}}{{{{ '{start}assistant{middle}' }}}}{{% endif %}}",
        end,
    )


_IM = ("<|im_start|>", "\n", "<|im_end|>")
_CHATML = _marked("chatml_direct", "Answer the questions.", *_IM, "")
_QWEN = _marked("qwen_1_5", "You are a helpful assistant.", *_IM, "\n")
INTERNVL_2_5 = _marked("internvl2_5", _INTERNVL_SYSTEM, *_IM, "\n", _CONTENT_IN_ORDER)
"""Of InternVL 2.5, 3 and 3.5."""
_HEADER = ("<|start_header_id|>", "<|end_header_id|>\n\n", "<|eot_id|>")
_LLAMA_3 = _marked("llava_llama_3", _LLAMA_3_SYSTEM, *_HEADER, "")


def conversation_of(tokenizer: Any, text_model: str) -> Conversation:
    """The conversation of a checkpoint.

    Args:
        tokenizer: As transformers loads it.
        text_model: Model type of the decoder.
    """
    tokens = tokenizer.get_vocab()
    if "<|start_header_id|>" in tokens:
        return _LLAMA_3
    if "<|im_end|>" in tokens:
        return _QWEN if text_model == "qwen2" else _CHATML
    return _MISTRAL if text_model == "mistral" else _VICUNA
