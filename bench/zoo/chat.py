"""Tokenizers of real models: the `tokenizers` library for the text, Jinja for the chat template."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from bench.errors import BenchError
from bench.zoo.checkpoint import Message

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


class TextTokenizer:
    """A `tokenizers.Tokenizer` with a chat template.

    `special` are the template's variables (bos_token, eos_token, ...). `begin` are the ids in front of a plain text;
    a template writes its own.
    """

    def __init__(self, backend: tokenizers.Tokenizer, template: str | None, special: dict[str, str], begin: list[int]):
        backend.no_truncation()  # tokenizer.json may carry the settings of somebody's training
        backend.no_padding()
        self.backend, self.template, self.special, self.begin = backend, template, special, begin

    def encode(self, text: str) -> list[int]:
        """Ids of a plain text, behind the begin-of-text token if the model wants one."""
        return self.begin + self.backend.encode(text, add_special_tokens=False).ids

    def decode(self, ids: list[int]) -> str:
        """The text of these ids, without control tokens."""
        return self.backend.decode(ids)

    def chat(self, messages: list[Message]) -> list[int]:
        """Ids of a conversation up to where the assistant speaks. BenchError without a template, or if it refuses."""
        if self.template is None:
            raise BenchError("the model has no chat template: pass --raw to give it the prompts as they are")
        try:
            text = render(self.template, messages, self.special)
        except jinja2.TemplateError as error:
            raise BenchError(f"the model's chat template fails ({error}): pass --raw to do without it") from error
        return self.backend.encode(text, add_special_tokens=False).ids

    def vocabulary(self) -> dict[str, int]:
        """Every token with its id."""
        return self.backend.get_vocab()

    def save(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as `read_tokenizer` and transformers read them."""
        self.backend.save(str(folder / "tokenizer.json"))
        config = self.special | {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": bool(self.begin)}
        if self.template is not None:
            config["chat_template"] = self.template
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def render(template: str, messages: list[Message], special: dict[str, str]) -> str:
    """A conversation as text, in the Jinja dialect of transformers' chat templates.

    `strftime_now` is left undefined: templates that would print today's date fall back to a fixed one, so that
    prompts are the same tomorrow.
    """
    return compiled(template).render(messages=messages, add_generation_prompt=True, **special)


@cache
def compiled(template: str) -> jinja2.Template:
    """A template, ready to render: this takes longer than a conversation does."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    return environment.from_string(template)


def refuse(message: str) -> None:
    """What templates call for conversations that they cannot express."""
    raise jinja2.TemplateError(message)


def read_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a Hugging Face directory, and its chat template if it has one."""
    config = read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    special = {key: text_of(config[key]) for key in SPECIAL if config.get(key)}
    backend = read_backend(folder)
    bos = backend.token_to_id(special.get("bos_token", ""))
    begin = [] if bos is None else [bos]
    adds = config.get("add_bos_token")
    if adds is False or (adds is None and backend.encode("").ids[:1] != begin):
        begin = []
    return TextTokenizer(backend, read_template(folder, config), special, begin)


def read_backend(folder: Path) -> tokenizers.Tokenizer:
    """tokenizer.json, or a conversion of tokenizer.model and the like. BenchError if neither can be read."""
    try:
        if (folder / "tokenizer.json").exists():
            return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        from transformers import AutoTokenizer  # slow to import, and seldom needed

        return AutoTokenizer.from_pretrained(folder).backend_tokenizer
    except Exception as error:  # both libraries raise bare Exceptions, among others
        reason = str(error).strip().splitlines()[0]
        raise BenchError(f"{folder}: no tokenizer can be read ({reason})") from error


def read_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template: a file of its own, or in tokenizer_config.json (where a list has a "default")."""
    if (folder / "chat_template.jinja").exists():
        return (folder / "chat_template.jinja").read_text(encoding="utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):
        template = {entry["name"]: entry["template"] for entry in template}.get("default")
    return template


def text_of(token: str | dict[str, Any]) -> str:
    """A special token's text: configs write it plain or as an object."""
    return token if isinstance(token, str) else token["content"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. BenchError if the file is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BenchError(f"{path} is missing: not a model directory in Hugging Face layout") from None
    except ValueError as error:
        raise BenchError(f"{path} is not valid JSON ({error})") from error
