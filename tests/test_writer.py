"""Describe, mask, complete: what is asked, and what becomes of the answers.

The model of these tests knows a few words and reads its task from the
templates, like any other; faults are put before its answers.
"""

import asyncio
import dataclasses
import json
import re

import pytest
from contents import paint
from hypothesis import given
from hypothesis import strategies as st

from neggen_jax.errors import InputError
from neggen_jax.generation import records
from neggen_jax.generation.backends import Reply, RequestError
from neggen_jax.generation.tasks import Task
from neggen_jax.generation.writers import prompts
from neggen_jax.generation.writers.prompted import Options, Prompted, cut

WORDS = {
    "colour": ["red", "blue", "green", "white"],
    "material": ["felt", "silk", "wool", "cork"],
}
TEXT = "A red laptop sleeve of felt."
SHOWN = "A blue dress of wool."
PROMPTS = prompts.load()


class Model:
    """A backend that answers by rules.

    Args:
      faults: step -> what comes first, an answer each: a text, a reply or an
        exception.
    """

    name, model, concurrency = "rules", "rules-1", 8

    def __init__(self, **faults):
        self.faults = {step: list(first) for step, first in faults.items()}
        self.requests = []
        self.closed = False

    def asked(self, step):
        return [r for r in self.requests if r.label.endswith(f": {step}")]

    async def ask(self, request):
        self.requests.append(request)
        step = request.label.rsplit(" ", 1)[-1]
        await asyncio.sleep(0)
        if self.faults.get(step):
            answer = self.faults[step].pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer if isinstance(answer, Reply) else Reply(answer)
        return Reply(getattr(self, step)(request.messages[0][1]))

    def describe(self, asked):
        return SHOWN

    def mask(self, asked):
        text = asked.rsplit("Description: ", 1)[1]
        masks = []
        for name, values in WORDS.items():
            for value in values:
                if re.search(rf"\b{value}\b", text):
                    masks.append({"attribute": name, "value": value})
                    mask = f"[MASK_{len(masks)}]"
                    text = re.sub(rf"\b{value}\b", mask, text, count=1)
                    break
        return json.dumps({"masks": masks, "masked": text})

    def complete(self, asked):
        own = asked.rsplit("Values:", 1)[1]
        old = re.findall(r"^\d+\. (\w+): (\w+)$", own, re.M)
        (number,) = re.findall(r"Alternatives: (\d+), each", own)
        lists = []
        for k in range(int(number)):
            others = [
                [x for x in WORDS[name] if x != value] for name, value in old
            ]
            lists.append([x[k] for x in others])
        return json.dumps({"alternatives": lists})

    async def close(self):
        self.closed = True


def make_task(text=TEXT, modality="text", item=3, image="", **kept):
    kept = kept or {"category": "laptop sleeve"}
    return Task(item, f"id{item}", modality, text, {}, kept, str(image))


def write(model, task=None, **options):
    writer = Prompted(model, PROMPTS, Options(**options))
    record = asyncio.run(writer.write(task or make_task()))
    line = record.to_line().encode()  # As it is written.
    assert records.parse(line, "line 1") == record
    assert record.attempts == len(model.requests)
    return record


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "dress.png"
    paint(path, "blue", False)
    return make_task(
        "Winter. material: wool", "image", image=path, category="dress"
    )


def test_a_text_is_masked_and_completed():
    model = Model()
    made = "A {} laptop sleeve of {}."
    assert write(model) == records.Record(
        item=3,
        id="id3",
        modality="text",
        description=TEXT,
        attributes={"colour": "red", "material": "felt"},
        masked=made.format("[MASK_1]", "[MASK_2]"),
        negatives=(
            records.Alternative(
                made.format("blue", "silk"),
                {"colour": ("red", "blue"), "material": ("felt", "silk")},
            ),
        ),
        backend="rules",
        model="rules-1",
        prompt_version=PROMPTS.version,
        attempts=2,
    )
    mask, complete = model.requests
    assert mask.label == "item 3 text: mask"
    assert mask.schema["required"] == ["masks", "masked"]
    assert complete.schema["required"] == ["alternatives"]
    assert "stays: category: laptop sleeve\n" in mask.messages[0][1]
    assert not mask.image
    assert not complete.image


def test_a_picture_is_described_first(picture):
    model = Model()
    record = write(model, picture)
    assert record.accepted
    assert record.modality == "image"
    assert record.description == SHOWN
    assert record.attributes == {"colour": "blue", "material": "wool"}
    assert record.attempts == 3
    describe, mask, complete = model.requests
    assert describe.image == picture.image
    assert describe.schema is None
    assert describe.messages[0][1].endswith("Winter. material: wool")
    assert not mask.image
    assert not complete.image


def test_what_is_known_of_a_picture_may_be_its_kind_or_nothing(picture):
    model = Model()
    write(model, dataclasses.replace(picture, text=""))
    assert model.requests[0].messages[0][1].endswith(":\ncategory: dress")
    model = Model()
    nothing = {"category": "Unknown"}
    write(model, dataclasses.replace(picture, text="", kept=nothing))
    assert model.requests[0].messages[0][1].endswith(":\nnothing more")
    assert "stays: as the desc" in model.requests[1].messages[0][1]


def test_as_many_alternatives_as_are_wanted():
    record = write(Model(), alternatives=3)
    assert len(record.negatives) == 3
    assert len({made.text for made in record.negatives}) == 3


def test_options_reach_the_templates(picture):
    model = Model()
    write(model, picture, max_masks=2, description_words=33)
    assert "at most 33 words" in model.requests[0].messages[0][1]
    short = Model()
    write(short, picture, max_words=10)
    assert "at most 10 words" in short.requests[0].messages[0][1]
    assert "at most 2 attributes" in model.requests[1].messages[0][1]
    assert model.requests[1].schema["properties"]["masks"]["maxItems"] == 2
    model = Model()
    record = write(model, max_masks=1, retries=0)
    assert "1 to 1 masks" in record.error


# ---- refused and failed


CUT = Reply(Model().mask(f"Description: {TEXT}"), finished=False)
FAULTS = {
    "describe": [("", "too little"), (Reply(SHOWN, False), "cut off")],
    "mask": [
        ("No.", "no JSON object"),
        ('{"masks": [], "masked": ""}', "1 to 4 masks"),
        ("", "no JSON object"),
        (CUT, "cut off"),
    ],
    "complete": [
        ('{"alternatives": [["red", "silk"]]}', "means the same"),
        ('{"alternatives": [["blue"]]}', "1 list of 2 values"),
    ],
}
EACH = [(step, *fault) for step, faults in FAULTS.items() for fault in faults]


@pytest.mark.parametrize(("step", "answer", "reason"), EACH)
def test_a_refused_reply_is_answered_with_the_reason(
    picture, step, answer, reason
):
    model = Model(**{step: [answer]})
    # Replies to "complete" are wrong for the words of the text only.
    record = write(model, None if step == "complete" else picture)
    assert record.accepted
    first, second = model.asked(step)
    assert second.messages[:-2] == first.messages
    (said_by, said), (role, correction) = second.messages[-2:]
    assert (said_by, role) == ("assistant", "user")
    text = answer.text if isinstance(answer, Reply) else answer
    assert said == (text or "(nothing)")
    assert reason in correction
    same = dataclasses.replace(second, messages=first.messages)
    assert same == first  # The picture, the schema, the length.
    assert record.attempts == len(model.requests)


def test_only_the_last_refused_reply_is_said_again():
    model = Model(mask=["First.", "Second.", "Third."])
    assert write(model).accepted
    last = model.asked("mask")[3]
    assert [role for role, _ in last.messages] == ["user", "assistant", "user"]
    assert last.messages[1] == ("assistant", "Third.")


def test_a_long_refused_reply_is_not_said_whole():
    model = Model(mask=["long " * 2000])
    assert write(model).accepted
    assert len(model.asked("mask")[1].messages[1][1]) == 4000


def test_a_failed_request_ends_the_record():
    # The backend has tried again as often as makes sense.
    model = Model(mask=["No.", RequestError("timeout")])
    record = write(model)
    assert record.error == "mask: the request failed: timeout"
    assert record.attempts == len(model.asked("mask")) == 2
    assert not model.asked("complete")


@pytest.mark.parametrize("retries", [0, 2])
@pytest.mark.parametrize("step", FAULTS)
def test_what_still_fails_is_recorded_with_step_and_last_reason(
    picture, step, retries
):
    faults = ["Well."] * retries + [RequestError("timeout\nafter 3 s")]
    record = write(Model(**{step: faults}), picture, retries=retries)
    assert record.error == f"{step}: the request failed: timeout after 3 s"
    steps = list(FAULTS)
    assert record.attempts == steps.index(step) + retries + 1
    assert record.negatives == ()
    # What was got is kept.
    assert record.description == ("" if step == "describe" else SHOWN)
    assert bool(record.masked) == (step == "complete")
    assert bool(record.attributes) == (step == "complete")
    assert record.prompt_version == PROMPTS.version


def test_each_step_has_its_own_retries(picture):
    faults = {step: ["Well."] * 3 for step in FAULTS}
    assert write(Model(**faults), picture).attempts == 12
    assert write(Model(**faults), picture, retries=2).error.startswith("desc")


def test_the_last_reason_is_that_of_the_last_reply():
    bad = '{"masks": [], "masked": ""}'
    record = write(Model(mask=["No.", "No.", bad]), retries=2)
    assert record.error.startswith('mask: "masks" must be a list of 1 to 4')


def test_what_no_file_takes_does_not_come_into_one():
    bad = Reply('\ud800 {"masks": [{"attribute": "\ud800", "value": "red"}]')
    model = Model(mask=[bad, RequestError("\ud800 \n" * 600)])
    record = write(model, retries=1)
    assert record.error.startswith("mask: the request failed: ? ?")
    assert len(record.error) <= 500
    model.asked("mask")[1].messages[1][1].encode()


def test_what_ends_the_run_ends_it():
    for step in ("mask", "complete"):
        model = Model(**{step: [InputError("The key was refused.")]})
        with pytest.raises(InputError, match="refused"):
            write(model)


def test_what_says_the_kind_is_not_masked():
    record = write(Model(), make_task(kind="red bag"), retries=1)
    assert record.error.startswith("mask: Mask 1 hides 'red', which says")


# ---- tasks that nobody can do


@pytest.mark.parametrize("text", ["", " \n "])
def test_an_item_without_text(text):
    record = write(Model(), make_task(text))
    assert record.error == "the item has no text"
    assert record.attempts == 0


def test_an_item_without_picture(picture):
    record = write(Model(), dataclasses.replace(picture, image=""))
    assert record.error == "the item has no picture"
    assert record.attempts == 0


def test_an_unreadable_picture(picture, tmp_path):
    data = (tmp_path / "dress.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    for name in ("none.png", "cut.png", "text.png", ""):
        path = str(tmp_path / name)
        record = write(Model(), dataclasses.replace(picture, image=path))
        assert record.error.startswith("the picture cannot be read: ")
        assert record.attempts == 0


def test_a_text_with_a_mask_of_its_own():
    record = write(Model(), make_task("A red [mask_1] sleeve"))
    assert "has a mask in it" in record.error
    assert record.attempts == 0


# ---- lengths


def test_a_long_text_is_cut_before_it_is_masked():
    text = f"{TEXT} It has pockets."
    record = write(Model(), make_task(text), max_words=7)
    assert record.description == f"{TEXT} It"
    assert record.negatives[0].text.endswith("of silk. It")


@given(st.text(alphabet="ab \n", max_size=60), st.integers(1, 6))
def test_cutting(text, most):
    short = cut(text, most)
    assert text.strip().startswith(short)
    assert len(short) <= most * 12
    words, left = text.split(), short.split()
    assert len(left) == min(len(words), most) or len(short) + 12 > most * 12
    if max(map(len, words), default=0) <= 12:
        assert left == words[: len(left)]  # No word is cut.
    if len(words) <= most and len(text.strip()) <= most * 12:
        assert short == text.strip()


def test_a_text_without_spaces_is_cut_by_letters():
    assert cut("红" * 100, 3) == "红" * 36
    assert cut("a " + "b" * 100, 3) == "a"


def test_a_reply_may_be_as_long_as_it_must_be():
    long = "A red sleeve " + "with another zip " * 38 + "of felt."
    model = Model()
    task = make_task(long, category="case")
    assert write(model, task, max_masks=2).accepted
    reply = model.mask(f"Description: {long}")
    (mask,) = model.asked("mask")
    # English has more than three letters a token.
    assert mask.max_tokens > len(reply) / 3
    model = Model()
    assert write(model, alternatives=3).accepted
    (complete,) = model.asked("complete")
    reply = model.complete(complete.messages[0][1])
    assert complete.max_tokens > len(reply) / 2


@pytest.mark.parametrize(
    "options",
    [
        {"alternatives": 0},
        {"retries": -1},
        {"max_masks": 0},
        {"max_words": 0},
        {"description_words": 0},
    ],
)
def test_numbers_that_cannot_be(options):
    ((name, value),) = options.items()
    with pytest.raises(InputError, match=f"{name}={value}"):
        Options(**options)


# ---- all of it


def test_the_writer_is_its_backend_and_closes_it():
    model = Model()
    writer = Prompted(model, PROMPTS)
    assert (writer.name, writer.model) == ("rules", "rules-1")
    assert (writer.concurrency, writer.prompt_version) == (8, PROMPTS.version)
    asyncio.run(writer.close())
    assert model.closed


def test_many_at_a_time_do_not_mix():
    model = Model(mask=["No."] * 20, complete=["No."] * 9)
    writer = Prompted(model, PROMPTS)
    tasks = [
        make_task(f"A {WORDS['colour'][i % 4]} sleeve, number {i}", item=i)
        for i in range(40)
    ]

    async def run():
        return await asyncio.gather(*map(writer.write, tasks))

    made = asyncio.run(run())
    assert [record.item for record in made] == list(range(40))
    for task, record in zip(tasks, made, strict=True):
        assert record.accepted
        assert record.description == task.text
        assert record.negatives[0].text.endswith(f"number {task.item}")
    assert sum(record.attempts for record in made) == len(model.requests)


ANSWERS = st.lists(
    st.text(max_size=20)
    | st.builds(Reply, st.text(max_size=20), st.booleans())
    | st.just(RequestError("timeout"))
    | st.sampled_from([CUT, CUT.text, '{"alternatives": [["white", "cork"]]}']),
    max_size=4,
)


@given(ANSWERS, ANSWERS, st.integers(0, 3))
def test_whatever_is_answered_there_is_a_record(mask, complete, retries):
    model = Model(mask=mask, complete=complete)
    record = write(model, retries=retries)
    assert 1 <= record.attempts <= 2 * (retries + 1)
    assert len(model.asked("mask")) <= retries + 1
    assert len(model.asked("complete")) <= retries + 1
    assert record.description == TEXT
    assert record.accepted == bool(record.negatives)
    if not record.accepted:
        assert re.match("(mask|complete): .", record.error)
