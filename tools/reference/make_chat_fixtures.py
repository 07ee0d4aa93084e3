"""Makes the committed fixtures of chat templates: what transformers renders.

    python make_chat_fixtures.py [--out DIR]

In DIR (default pace-runtime/tests/fixtures_chat) it reads `templates/*.jinja`, written for this project in the idioms of
the model families, and writes

- `conversations.json`: messages, tools, documents and variables by name;
- `rendered/NAME.json`: for each conversation the text, or `raises`: the message of `raise_exception`, or `fails`: true;
- `expressions.json`: the same for small templates of one construct each.

A date that a template asks for is written as its format in angle brackets: ⟨%d %b %Y⟩.
"""

import argparse
import copy
import json
from pathlib import Path

import jinja2
from transformers.utils import chat_template_utils

from chat_expressions import MESSAGES, VARIABLES, expressions

DEFAULT_OUT = Path(__file__).resolve().parents[2] / "pace-runtime" / "tests" / "fixtures_chat"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


class FormatAsDate:
    """Stands in for `datetime` in transformers, so that the fixtures do not depend on the day."""

    @classmethod
    def now(cls):
        return cls()

    def strftime(self, format):
        return f"⟨{format}⟩"


chat_template_utils.datetime = FormatAsDate

SYSTEM = {"role": "system", "content": "You are brief.\n"}
USER = {"role": "user", "content": "  What is 2 + 2 in \"Zürich\" <b>? \n"}
ANSWER = {"role": "assistant", "content": " It is 4. "}
USER_2 = {"role": "user", "content": "And 3 + 3? 日本 🙂 </s>"}
PARTS = {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "text", "text": "a bee?"}]}
THOUGHT = {"role": "assistant", "content": "<think>\nTwo and two.\n</think>\n\nIt is 4."}
REASONED = {"role": "assistant", "content": "It is 4.", "reasoning_content": "\nTwo and two.\n"}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather\nof a city's \"centre\".",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Its name, <é>"},
                "unit": {"type": "string", "enum": ["C", "F"], "default": "C"},
                "days": {"type": ["integer", "null"], "minimum": 1},
                "tags": {"type": "array", "items": {"type": "string"}},
                "place": {"type": "object", "properties": {"lat": {"type": "number", "maximum": 90.0}}, "required": ["lat"]},
            },
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}
ARGUMENTS = {"city": "Zürich", "days": 2, "scale": 0.5, "exact": True, "unit": None, "tags": ["a", "b's"]}
WEATHER_CALL = {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}
NOW_CALL = {"id": "call00002", "type": "function", "function": {"name": "now", "arguments": {}}}
CALL = {"role": "assistant", "content": None, "tool_calls": [WEATHER_CALL]}
CALLS = {"role": "assistant", "content": "Let me see.", "tool_calls": [WEATHER_CALL, NOW_CALL]}
CALL_ONLY = {"role": "assistant", "tool_calls": [{**WEATHER_CALL, "id": "1"}]}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "weather", "content": "{\"temp\": 21.5}"}
RESULT_2 = {"role": "tool", "tool_call_id": "call00002", "name": "now", "content": "12:00"}
DOCUMENTS = [{"title": "Bees", "text": "Bees fly."}, {"title": "Ants \"A\"", "text": " Ants\nwalk.\n"}]

CONVERSATIONS = {
    "user": {"messages": [USER], "add_generation_prompt": True},
    "user, no prompt": {"messages": [USER]},
    "system": {"messages": [SYSTEM, USER], "add_generation_prompt": True},
    "turns": {"messages": [USER, ANSWER, USER_2], "add_generation_prompt": True},
    "system and turns": {"messages": [SYSTEM, USER, ANSWER, USER_2, ANSWER]},
    "empty": {"messages": [], "add_generation_prompt": True},
    "two users": {"messages": [USER, USER_2], "add_generation_prompt": True},
    "assistant first": {"messages": [ANSWER, USER], "add_generation_prompt": True},
    "unknown role": {"messages": [USER, {"role": "critic", "content": "No."}], "add_generation_prompt": True},
    "late system": {"messages": [USER, SYSTEM, ANSWER], "add_generation_prompt": True},
    "parts": {"messages": [PARTS, ANSWER, USER_2], "add_generation_prompt": True},
    "parts of the system": {"messages": [{"role": "system", "content": [{"type": "text", "text": "Be brief."}]}, USER]},
    "thought": {"messages": [USER, THOUGHT, USER_2], "add_generation_prompt": True},
    "reasoned last": {"messages": [USER, REASONED]},
    "no thinking": {"messages": [USER, ANSWER, USER_2], "variables": {"enable_thinking": False}, "add_generation_prompt": True},
    "thinking": {"messages": [SYSTEM, USER], "variables": {"enable_thinking": True, "thinking": True}, "add_generation_prompt": True},
    "mode in the text": {"messages": [{"role": "system", "content": "Be brief. /no_think"}, USER], "add_generation_prompt": True},
    "tools": {"messages": [SYSTEM, USER], "tools": [WEATHER, NOW], "add_generation_prompt": True},
    "no tools": {"messages": [USER], "tools": [], "documents": [], "add_generation_prompt": True},
    "call": {"messages": [USER, CALL, RESULT, ANSWER, USER_2], "tools": [WEATHER], "add_generation_prompt": True},
    "calls": {"messages": [SYSTEM, USER, CALLS, RESULT, RESULT_2, ANSWER], "tools": [NOW]},
    "call without content": {"messages": [USER, CALL_ONLY, RESULT], "add_generation_prompt": True},
    "reasoned call": {"messages": [USER, {**CALL, "reasoning": "I should look."}, RESULT], "add_generation_prompt": True},
    "variables": {
        "messages": [USER],
        "variables": {
            "date_string": "26 Jul 2024", "builtin_tools": ["search", "code_interpreter"], "custom_tools": [NOW],
            "tools_in_user_message": False, "reasoning_effort": "high", "bos_token": "<first>",
        },
        "add_generation_prompt": True,
    },
    "documents": {"messages": [SYSTEM, USER], "documents": DOCUMENTS, "add_generation_prompt": True},
}


def render(template: str, conversation: dict) -> dict:
    variables = {**TOKENS, **conversation.get("variables", {})}
    try:
        texts, _ = chat_template_utils.render_jinja_template(
            [copy.deepcopy(conversation["messages"])],
            tools=conversation.get("tools"),
            documents=conversation.get("documents"),
            chat_template=template,
            add_generation_prompt=conversation.get("add_generation_prompt", False),
            **variables,
        )
    except Exception as error:
        # `raise_exception` raises this very class; the engine's own errors are subclasses or Python's.
        return {"raises": str(error)} if type(error) is jinja2.TemplateError else {"fails": True}
    return {"text": texts[0]}


def write(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT)
    out = parser.parse_args().out
    write(out / "conversations.json", CONVERSATIONS)
    for path in sorted(out.glob("templates/*.jinja")):
        template = path.read_text(encoding="utf-8")
        rendered = {name: render(template, conversation) for name, conversation in CONVERSATIONS.items()}
        write(out / "rendered" / f"{path.stem}.json", rendered)
    context = {"messages": MESSAGES, "variables": VARIABLES, "add_generation_prompt": True}
    cases = [{"template": template, **render(template, context)} for template in expressions()]
    write(out / "expressions.json", {"context": context, "cases": cases})


if __name__ == "__main__":
    main()
