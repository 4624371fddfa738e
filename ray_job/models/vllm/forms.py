"""An answer's form as vLLM's: the grammar that the other engines hold answers to. Imports no vLLM.

vLLM follows what tokens write, and an answer is what decoding makes of them, which for tokenizers in the manner of
sentencepiece drops the space that it begins with. There the grammar lets a space come first.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import llguidance

from ray_job.errors import ErrorCode, RowError, Stage
from ray_job.spec import StructuredOutputs
from ray_job.structured.grammar import FormError, grammar_of

BACKEND = "guidance"  # of vLLM's: the one that this package's engines run too
_SPACE = ord(" ")


def form_arguments(form: StructuredOutputs, *, drops_space: bool = False) -> dict[str, Any]:
    """Arguments of `vllm.sampling_params.StructuredOutputsParams`.

    Args:
        form: of the answer.
        drops_space: decoding leaves out the space that an answer's tokens begin with.

    Raises:
        RowError: PARAMS_INVALID, what is wrong with the form, in the words of the other engines.
    """
    if form.close_at_limit:
        raise _invalid("close_at_limit: vLLM cuts answers off; leave it out, or set batching.engine: auto")
    try:
        whole = grammar_of(form)
    except FormError as error:
        raise _invalid(str(error)) from None
    (grammar,) = json.loads(whole)["grammars"]
    schema = grammar.get("json_schema")
    if not drops_space:
        return {"grammar": grammar["lark_grammar"]} if schema is None else {"json": schema}
    inner = f"%lark {{\n{grammar['lark_grammar']}\n}}" if schema is None else f"%json {json.dumps(schema)}"
    # Where the form itself may begin with a space, only tokens with one more write it.
    space = '" "' if _may_begin_with_space(whole) else '" "?'
    return {"grammar": f"start: {space} form\nform: {inner}"}


def drops_first_space(decode: Callable[[Sequence[int]], str], num_ids: int) -> bool:
    """Whether a tokenizer leaves out the space that an answer begins with: shown by a token that has one.

    Args:
        decode: ids to an answer's text.
        num_ids: of the model.
    """
    for token in range(num_ids):
        alone, twice = decode([token]), decode([token, token])
        if alone.strip() and twice == f"{alone} {alone}":
            return True
        if alone.strip() and alone.startswith(" ") and twice == alone + alone:
            return False
    return False


def _may_begin_with_space(grammar: str) -> bool:
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar)
    return matcher.validate_tokens([_SPACE]) > 0


def _invalid(problem: str) -> RowError:
    return RowError(ErrorCode.PARAMS_INVALID, f"structured_outputs.{problem}", Stage.GENERATE)
