"""Chat templates in the style of the published ones, and a tokenizer that has all their tokens."""

import json
from pathlib import Path

from tests.support import tiny

LLAMA_4 = tiny.TEMPLATE

LLAMA_3 = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}{% set messages = messages[1:] %}
{%- else %}{% set system_message = '' %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\n' + 'Today Date: ' + date_string + '\\n\\n' }}
{%- if tools is not none %}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- '\\n\\n' }}{%- endfor %}
{%- endif %}
{{- system_message }}{{- '<|eot_id|>' }}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call') }}{%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
        {{- '{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}{{- '}' }}
        {{- '<|eot_id|>' }}
    {%- elif message.role == 'tool' or message.role == 'ipython' %}
        {{- '<|start_header_id|>ipython<|end_header_id|>\\n\\n' }}
        {%- if message.content is mapping or message.content is iterable %}
            {{- message.content | tojson }}
        {%- else %}{{- message.content }}{%- endif %}{{- '<|eot_id|>' }}
    {%- else %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

CHATML = """{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}{% endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | string + '<|im_end|>' + '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set ns = namespace(index=0) %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " ~ system_message ~ "\\n\\n" ~ message["content"] ~ "[/INST]" }}
        {%- else %}{{- "[INST] " ~ message["content"] ~ "[/INST]" }}{%- endif %}
    {%- else %}{{- " " ~ message["content"] | default('', true) | trim ~ eos_token }}{%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{%- set first_user_prefix = messages[0]['content'] + '\\n\\n' %}{% set messages = messages[1:] %}
{%- else %}{% set first_user_prefix = '' %}{% endif %}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}{% set role = 'model' %}
    {%- else %}{% set role = message['role'] %}{% endif %}
    {{- '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else '') }}
    {%- if message['content'] is string %}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for item in message['content'] %}{{ item['text'] | trim }}{% endfor %}{% endif %}
    {{- '<end_of_turn>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

DEEPSEEK = """{% if not thinking is defined %}{% set thinking = false %}{% endif %}
{%- set ns = namespace(system='', is_tool=false) %}
{%- for message in messages %}{% if message.role == 'system' %}
{%- set ns.system = ns.system + message['content'] %}{% endif %}{% endfor %}
{{- bos_token ~ ns.system }}
{%- for message in messages %}
    {%- set content = message['content'] %}
    {%- if message['role'] == 'user' %}{{ '<｜User｜>' + content + '<｜Assistant｜>' }}
    {%- elif message['role'] == 'assistant' %}
        {%- if content and '</think>' in content %}{% set content = content.split('</think>')[-1] %}
        {%- endif %}{{- content ~ '<｜end▁of▁sentence｜>' }}
    {%- elif message['role'] == 'tool' %}
        {{- '\\n<tool▁output>' ~ content ~ '</tool▁output>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<think>' if thinking else '</think>' }}{% endif %}"""

QWEN = """{%- macro text_of(content) %}{% if content is string %}{{ content }}{% else %}
{%- for part in content %}{% if 'text' in part %}{{ part.text }}{% endif %}{% endfor %}{% endif %}
{%- endmacro %}
{%- set head %}{{ '<|im_start|>' }}{% endset %}
{%- if tools %}{{ head ~ 'system\\n# Tools\\n<tools>' }}
    {%- for tool in tools %}{{ "\\n" ~ tool | tojson }}{% endfor %}{{ '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- set content = text_of(message.content) | trim %}
    {%- if message.role in ('user', 'system') %}
        {{- head + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}{% set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- head ~ 'assistant\\n<think>\\n' ~ reasoning.strip('\\n') }}
        {{- '\\n</think>\\n\\n' ~ content }}
        {%- for call in message.tool_calls or [] %}
            {{- '\\n<tool_call>\\n{"name": "%s", "arguments": ' % call.function.name }}
            {{- call.function.arguments if call.function.arguments is string
                else call.function.arguments | tojson }}{{ '}\\n</tool_call>' }}
        {%- endfor %}{{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- set before = {} if loop.first else messages[loop.index0 - 1] %}
        {%- if before.role != 'tool' %}{{ head ~ 'user' }}{% endif %}
        {{- '\\n<tool_response>\\n' ~ content ~ '\\n</tool_response>' }}
        {%- if loop.last or loop.nextitem.role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ head + 'assistant\\n' }}{% endif %}"""

# The token is made of the template's text and the name of a role.
PHI = """{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] | string
+ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""

# Tokens that come through what else jinja2 can do with text.
ODD = """{%- macro twice() %}{{ caller('<|im_start|>') * 2 }}{% endmacro %}
{%- set marks = {'user': '<|im_start|>user', 'assistant': '<|im_start|>assistant'} %}
{%- set stop = '<|%s|>' | format('im_end') %}{% set sep = joiner(stop ~ '\\n') %}
{%- for message in messages %}{{ sep() }}
    {%- filter trim %}  {{ marks.get(message.role, '{}{}'.format('<|im_start|>', message.role)) }}
    {{ message.content | string | replace('IMAGE', '<|im_end|>') }}{% endfilter %}
    {{- [message.role, 'x'] | join(stop) }}
    {%- filter indent(3, true, true) %}{{ stop }}{{ message.content | string }}
    x{{ stop }}{% endfilter %}
{%- endfor %}{{ (stop ~ '\\n').upper().lower()[:-1] | safe }}
{{- stop | title | lower }}{{ stop | tojson }}
{%- call(x) twice() %}{{ x }}{% endcall %}{{ stop | list | join }}{{ stop[::-1][::-1] }}
{%- for word in 'system<|im_end|>user'.split('<|im_end|>') %}{{ word ~ stop }}{% endfor %}"""

TEMPLATES = {
    "llama 4": LLAMA_4,
    "llama 3": LLAMA_3,
    "chatml": CHATML,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "deepseek": DEEPSEEK,
    "qwen": QWEN,
    "phi": PHI,
    "odd": ODD,
}
SPECIAL = [
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>"),
    *("[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "</s>", "⁂"),
    *("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    *("<|user|>", "<|assistant|>", "<|system|>", "<|tool|>", "<|end|>"),
]
PLAIN = [f"<{slash}{n}>" for n in ("think", "tool_call", "tool_response") for slash in ("", "/")]


def write_checkpoint(folder: Path, template: str) -> None:
    """`tiny`'s settings with all tokens; those of `PLAIN` are not special."""
    tiny.write_settings(folder)
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    first = max(token["id"] for token in content["added_tokens"]) + 1
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for i, token in enumerate([*SPECIAL, *PLAIN]):
        special = token in SPECIAL
        content["added_tokens"].append(
            {"id": first + i, "content": token, "special": special, **flags}
        )
    tiny.write_json(file, content)
    config = tiny.CONFIG | {
        "text_config": tiny.TEXT | {"vocab_size": 400, "max_position_embeddings": 1 << 20}
    }
    tiny.write_json(folder / "config.json", config)
    names = {"bos_token": "<|begin_of_text|>", "eos_token": "</s>", "chat_template": template}
    tiny.write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", **names}
    )
