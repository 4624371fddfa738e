"""What is asked."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ray_job.spec.section import Section, Strings, has_half_pair

MAX_QUESTIONS = 2**16  # of one row


class PromptSpec(Section):
    """What is asked about each row's pictures."""

    template: str | None = Field(
        None,
        description="Text with {column} fields, e.g. 'What is on this {category}?'. Picture tags "
        "<|image_1|> … place the pictures; without tags they stand first. Default: '{prompt}' or '{question}' "
        "where the data has that column.",
    )
    system: str | None = Field(None, description="System prompt, the same for every row.")
    messages_column: str | None = Field(
        None,
        description="Column with chat messages (list or JSON text): OpenAI's, TRL's, or LLaVA's {from, value}. They "
        "are asked up to the user's last turn; an answer recorded after it is not shown. Default: `messages`, "
        "`conversations`, or a `prompt` that is a list of messages, where the data has that column.",
    )
    image_tag: str | None = Field(
        None,
        description="Text that shows the next of the row's pictures wherever it stands in the prompt, such as "
        "`<image>`. Default: `<image>` in {from, value} messages, and elsewhere if no other tag places pictures and it "
        "stands there as often as the row has pictures. An empty text: none at all.",
    )
    questions: Strings | None = Field(
        None, description="Ask each of these about every row; fills {question} in the template."
    )
    questions_column: str | None = Field(
        None, description="Column holding a list of questions for its row; fills {question} in the template."
    )
    column_markup: Literal["literal", "tags", "special"] = Field(
        "literal",
        description="How text from columns is read: `literal` (nothing in it is special), `tags` (picture tags "
        "count), `special` (picture tags and chat tokens count: only for data you trust).",
    )

    @model_validator(mode="after")
    def _one_source_of_questions(self) -> Self:
        chosen = [
            name for name in ("messages_column", "questions", "questions_column") if getattr(self, name) is not None
        ]
        if len(chosen) > 1:
            raise ValueError(f"{' and '.join(chosen)} exclude each other; keep one")
        if self.messages_column is not None and self.template is not None:
            raise ValueError("messages_column and template exclude each other; keep one")
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        questions = self.questions or ()
        if len(questions) > MAX_QUESTIONS:
            raise ValueError(
                f"questions: {len(questions)} of them; allowed: {MAX_QUESTIONS}. Ask the rest in another job"
            )
        texts = {"template": (self.template,), "system": (self.system,), "questions": questions}
        for name, values in texts.items():
            for text in values:
                if text is not None and has_half_pair(text):
                    raise ValueError(f"{name}: holds half of a surrogate pair, which is no character; remove it")
        return self
