"""What tools say, marked as data: a model is told that it holds no instructions, and it cannot end its own mark.

That is a hint to the model and no guarantee; what holds whatever a model believes is in docs/agents.md.
"""

from __future__ import annotations

import re

OPENING = "<tool_data>"
CLOSING = "</tool_data>"

# Marks of roles and turns in the chat templates of common models, and our own. Text that holds one would be tokenized
# as the mark itself, and could end the message that it stands in.
_MARKS = re.compile(
    r"<\s*/?\s*tool_data\s*>"
    r"|<\|[^|<>]{0,64}\|?>"
    r"|</?s>"
    r"|<(?:bos|eos|pad|unk)>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|<</?SYS>>"
    r"|</?(?:start_of_turn|end_of_turn|tool_call|tool_response|tools|think)>",
    re.IGNORECASE,
)


def without_marks(text: str) -> str:
    """The text with a blank in every mark of a template, which then is a word like others."""
    return _MARKS.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", text)


def as_data(text: str) -> str:
    """The text between marks, free of other marks."""
    return f"{OPENING}{without_marks(text)}{CLOSING}"
