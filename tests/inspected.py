"""Records to be looked at, some hostile, some failed."""

import json

from conftest import ITEMS

from neggen_jax.data.counterfactuals import locate
from neggen_jax.generation.records import Alternative, Record

COLOURS = ["red", "blue", "green", "black"]
HOSTILE = {
    0: '<script>alert("0")</script>',
    1: "\"><img src=x onerror='alert(1)'>",
    2: "</article></body><h1>fake</h1>",
    3: "&lt;b&gt; & <b>bold</b>",
    4: "right\u202eto left, \x1b[31mred\x00",
    5: "[link](javascript:alert(5)) **bold** `code` ![x](http://evil/x.png)",
    6: "# Heading\n\n- list | cell\n\n---",
    7: "$\\frac{1}{0}$",
}
FAILED = (3, 10, 17, 24, 31)


def make_records(items=ITEMS) -> list[Record]:
    made = []
    for item in range(items):
        for modality in ("text", "image"):
            old, new = COLOURS[item % 4], COLOURS[(item + 1) % 4]
            title = HOSTILE.get(item, f"thing {item}")
            about = {"item": item, "id": f"A<u>{item}", "modality": modality}
            words = f"{title}: a {old} {modality} of wool"
            if item in FAILED and modality == "text":
                reason = f"length; <b>{title}</b>" if item % 2 else "no words"
                made.append(
                    Record(
                        **about,
                        description=words if item > 10 else "",
                        attempts=3,
                        error=reason,
                    )
                )
                continue
            changes = {"colour": (old, new)}
            if item % 3 == 0:
                changes["<i>stuff</i>"] = ("wool", title)
            text = words.replace(f"a {old}", f"a {new}")
            made.append(
                Record(
                    **about,
                    description=words,
                    attributes={"colour": old},
                    masked=words.replace(f"a {old}", "a [MASK_1]"),
                    negatives=(Alternative(text, changes),),
                    attempts=1 + item % 2,
                )
            )
    return made


def write_set(directory, made, name="rule", **manifest):
    path = locate(directory, name)
    path.mkdir(parents=True)
    lines = "".join(record.to_line() for record in made)
    (path / "records.jsonl").write_text(lines, "utf-8")
    manifest = {"backend": "rule", "kept": ["<u>kind</u>"], **manifest}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return path
