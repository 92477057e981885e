from __future__ import annotations

import random

import pytest
from intelligent_generation.core.errors import PromptError
from intelligent_generation.core.plan import LoraTag
from intelligent_generation.core.prompting.syntax import MAX_NESTING, read_emphasis, read_prompt

# What ComfyUI 0.3.75's own parser gave for each text.
COMFY_READS = [
    ("plain text", [("plain text", 1.0)]),
    ("(word)", [("word", 1.1)]),
    ("((word))", [("word", 1.2100000000000002)]),
    ("(((word)))", [("word", 1.3310000000000004)]),
    ("(word:1.3)", [("word", 1.3)]),
    ("(word: 0.7 )", [("word", 0.7)]),
    ("(word:1e-1)", [("word", 0.1)]),
    ("(word:-1)", [("word", -1.0)]),
    ("((inner:1.5) outer)", [("inner", 1.5), (" outer", 1.1)]),
    ("((inner:1.5) outer:0.5)", [("inner", 1.5), (" outer", 0.5)]),
    (
        "(outer (middle (inner:2)))",
        [("outer ", 1.1), ("middle ", 1.2100000000000002), ("inner", 2.0)],
    ),
    ("a (b) c (d:1.2) e", [("a ", 1.0), ("b", 1.1), (" c ", 1.0), ("d", 1.2), (" e", 1.0)]),
    ("(a)(b)", [("a", 1.1), ("b", 1.1)]),
    ("()", []),
    ("(:1.3)", [(":1.3", 1.1)]),
    ("( :1.3)", [(" ", 1.3)]),
    ("(:)", [(":", 1.1)]),
    ("(x:)", [("x:", 1.1)]),
    ("(x:big)", [("x:big", 1.1)]),
    ("(a:b:1.4)", [("a:b", 1.4)]),
    ("(time 10:30)", [("time 10", 30.0)]),
    ("\\(literal\\)", [("(literal)", 1.0)]),
    ("(smile \\(happy\\):1.2)", [("smile (happy)", 1.2)]),
    ("\\\\(x\\\\)", [("\\(x\\)", 1.0)]),
    ("(x\\:1.2)", [("x\\", 1.2)]),
    ("(unclosed", [("(unclosed", 1.0)]),
    ("(unclosed:1.3", [("(unclosed:1.3", 1.0)]),
    ("(a (b)", [("a ", 1.1), ("(b", 1.1)]),
    ("((a)", [("(a", 1.1)]),
    ("(a", [("(a", 1.0)]),
    ("a (b (c", [("a ", 1.0), ("(b (c", 1.0)]),
    ("closed)", [("closed)", 1.0)]),
    ("a) (b) c", [("a) (b) c", 1.0)]),
    ("a) ((b)) c", [("a) (", 1.0), ("b", 1.1), (") c", 1.0)]),
    ("))((x", [("))((x", 1.0)]),
    ("(a)) (b)", [("a", 1.1), (") (b)", 1.0)]),
    ("[x] {y|z}", [("[x] {y|z}", 1.0)]),
    ("embedding:name (embedding:other:1.2)", [("embedding:name ", 1.0), ("embedding:other", 1.2)]),
    ("(線:1.1)", [("線", 1.1)]),
    ("(x:1_0)", [("x", 10.0)]),
    ("(a\nb:1.2)\n", [("a\nb", 1.2), ("\n", 1.0)]),
]


@pytest.mark.parametrize(("text", "spans"), COMFY_READS)
def test_emphasis_is_read_as_comfyui_reads_it(text, spans):
    assert [(span.text, span.weight) for span in read_emphasis(text)] == spans


@pytest.mark.parametrize(
    "text",
    ["(" * 10_000 + "x" + ")" * 10_000, "(" * 50_000 + ")" * 25_000, "(cat:nan)", "(cat:1e999)"],
)
def test_what_comfyui_cannot_read_is_refused(text):
    with pytest.raises(PromptError):
        read_emphasis(text)


def test_nesting_up_to_the_limit_is_read():
    text = "(" * MAX_NESTING + "x" + ")" * MAX_NESTING
    (span,) = read_emphasis(text)
    assert span.text == "x"
    assert span.weight == pytest.approx(1.1**MAX_NESTING)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 50_000,
        ")" * 50_000,
        "()" * 25_000,
        "(a" * 16_000,
        "(" * 400 + "()" * 24_000 + ")" * 400,
        ":" + " " * 50_000,
        "<" * 50_000,
        "[:" * 25_000,
        "<lora:a:1>" * 5_000,
    ],
)
@pytest.mark.parametrize("syntax", ["comfy", "a1111"])
def test_odd_texts_of_full_length_are_read_or_refused(text, syntax):
    try:
        read = read_prompt(text, syntax)
    except PromptError as error:
        assert "nested" in str(error)
    else:
        assert read.segments


# --------------------------------------------------------------------------- LoRA tags


@pytest.mark.parametrize(
    ("tag", "expected"),
    [
        ("<lora:ink>", ("ink", 1.0, 1.0)),
        ("<lora:ink:0.8>", ("ink", 0.8, 0.8)),
        ("<lora:ink:0.8:0.6>", ("ink", 0.8, 0.6)),
        ("<lyco:ink:-1>", ("ink", -1.0, -1.0)),
        ("<LoRA: styles/ink v2 (final) : .5 >", ("styles/ink v2 (final)", 0.5, 0.5)),
        ("<lora:ink:te=0.2:unet=0.9>", ("ink", 0.9, 0.2)),
    ],
)
def test_lora_tag(tag, expected):
    name, model, clip = expected
    read = read_prompt(f"cat, {tag}", "comfy")
    assert read.lora_tags == (LoraTag(name=name, model_strength=model, clip_strength=clip),)
    assert read.segments == ("cat",)
    assert not read.notices


def test_a1111_names_the_text_encoder_first():
    (tag,) = read_prompt("cat <lora:ink:0.8:0.6>", "a1111").lora_tags
    assert (tag.model_strength, tag.clip_strength) == (0.6, 0.8)


@pytest.mark.parametrize(
    "tag",
    [
        "<lora:ink:strong>",
        "<lora:ink:>",
        "<lora::1>",
        "<lora:ink:1:1:1>",
        "<lora:ink:nan>",
        "<lora:ink:1000>",
        "<lora:ink:1:lbw=ALL>",
        "<lora:ink",
    ],
)
def test_malformed_lora_tag_is_refused_by_name(tag):
    with pytest.raises(PromptError, match="<lora:"):
        read_prompt(f"cat, {tag}", "comfy")


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("<lora:a>, cat", "cat"),
        ("cat, <lora:a>, dog", "cat, dog"),
        ("cat <lora:a> dog", "cat dog"),
        ("cat,<lora:a>", "cat"),
        ("cat, <lora:a> <lora:b>", "cat"),
        ("cat,\n<lora:a>\ndog", "cat,\ndog"),
        ("(<lora:a:1>:1.2), cat", "cat"),
        ("(<lora:a><lora:b>:1.2) cat", "cat"),
        ("(cat <lora:a>:1.2)", "(cat:1.2)"),
        ("cat ,  dog (  bird )", "cat ,  dog (  bird )"),
        ("a \\(<lora:a>\\)", "a \\(\\)"),
    ],
)
def test_nothing_is_left_of_a_tag_and_nothing_else_is_touched(text, left):
    (segment,) = read_prompt(text, "comfy").segments
    assert segment == left or segment.replace("( ", "(") == left


def test_tags_of_the_negative_prompt_and_hypernetworks_are_taken_out_with_a_notice():
    read = read_prompt("ugly, <lora:ink:x>, <hypernet:old:1>", "comfy", negative=True)
    assert read.segments == ("ugly",)
    assert read.lora_tags == ()
    codes = {notice.code for notice in read.notices}
    assert codes == {"lora_tag_in_negative", "hypernetwork_ignored"}
    assert any("<lora:ink:x>" in notice.message for notice in read.notices)


# --------------------------------------------------------------------------- notices


def test_comfy_text_is_left_as_it_is():
    text = "embedding:nice, {red|blue} [x], café\t(a:1.2)  \n"
    assert read_prompt(text, "comfy").segments == (text,)


@pytest.mark.parametrize(
    ("text", "position", "reading"),
    [
        ("cat, (red dress", 6, '"(red dress" with weight 1'),
        ("cat) dog", 4, '"cat) dog" with weight 1'),
        ("<lora:a(b>cat, (red (hat)", 16, '"red" with weight 1.1, "(hat" with weight 1.1'),
    ],
)
def test_unbalanced_parentheses_are_told_with_position_and_reading(text, position, reading):
    (notice,) = read_prompt(text, "comfy").notices
    assert notice.code == "unbalanced_parentheses"
    assert notice.level == "warning"
    assert f"character {position} " in notice.message
    assert reading in notice.message


@pytest.mark.parametrize("text", ["(balanced (text):1.2)", "escaped \\( only", "smile :)\\("])
def test_escaped_and_balanced_parentheses_give_no_notice(text):
    stray = text.startswith("smile")
    assert bool(read_prompt(text, "comfy").notices) is stray


def test_a_clock_time_in_parentheses_gives_a_notice():
    (notice,) = read_prompt("station (at 10:30)", "comfy").notices
    assert notice.code == "extreme_weight"
    assert "30" in notice.message


@pytest.mark.parametrize("text", ["cat BREAK dog", "a [cat:dog:0.5]"])
def test_a1111_syntax_read_as_comfy_is_told(text):
    (notice,) = read_prompt(text, "comfy").notices
    assert notice.code == "a1111_syntax_suspected"


def test_half_a_character_is_refused():
    with pytest.raises(PromptError, match="position 4"):
        read_prompt("cat\ud800", "comfy")


# --------------------------------------------------------------------------- A1111


def weights_of(text):
    (spans,) = read_prompt(text, "a1111").spans
    return [
        (span.text, pytest.approx(span.weight, abs=1e-4)) for span in spans if span.text.strip()
    ]


@pytest.mark.parametrize(
    ("text", "spans"),
    [
        ("plain", [("plain", 1.0)]),
        ("(x)", [("x", 1.1)]),
        ("[x]", [("x", 1 / 1.1)]),
        ("[[x]]", [("x", 1 / 1.21)]),
        ("(x:1.5)", [("x", 1.5)]),
        ("((x:1.5))", [("x", 1.65)]),
        ("(a (b:0.5) c:2)", [("a ", 2.0), ("b", 1.0), (" c", 2.0)]),
        ("([x])", [("x", 1.0)]),
        ("(a [b) c]", [("a ", 1.1), ("b", 1.0), (" c", 1 / 1.1)]),
        ("x (open", [("x ", 1.0), ("open", 1.1)]),
        ("x [open", [("x ", 1.0), ("open", 1 / 1.1)]),
        ("stray) x", [("stray) x", 1.0)]),
        ("stray] x", [("stray] x", 1.0)]),
        ("stray:1.5) x", [("stray:1.5) x", 1.0)]),
        ("\\(literal\\) \\[too\\]", [("(literal) [too]", 1.0)]),
        ("(smile \\(happy\\):1.2)", [("smile (happy)", 1.2)]),
        ("back\\\\(x)", [("back\\", 1.0), ("x", 1.1)]),
        ("(a: 1.3 )", [("a", 1.3)]),
        ("(a:b)", [("a:b", 1.1)]),
        ("{x}", [("{x}", 1.0)]),
    ],
)
def test_a1111_emphasis(text, spans):
    assert weights_of(text) == spans


def test_a1111_spans_survive_the_translation():
    """Weights worked out here from brackets alone are those ComfyUI will read."""
    dice = random.Random(7)

    def group(depth, weight):
        text, spans = "", []
        for _ in range(dice.randint(1, 3)):
            kind = dice.choice(
                ["word", "word", "round", "square", "explicit"] if depth < 5 else ["w"]
            )
            if kind in ("word", "w"):
                word = dice.choice(["cat", "a b", "x\\(y\\)", "c:d"])
                text += word + " "
                spans.append((word.replace("\\", "") + " ", weight))
                continue
            factor = {"round": 1.1, "square": 1 / 1.1, "explicit": 1.5}[kind]
            inner, more = group(depth + 1, weight * factor)
            shape = {"round": "({})", "square": "[{}]", "explicit": "({}:1.5)"}[kind]
            text += shape.format(inner)
            spans += more
        return text, spans

    for _ in range(300):
        text, expected = group(0, 1.0)
        (spans,) = read_prompt(text, "a1111").spans
        read = [(character, span.weight) for span in spans for character in span.text]
        wanted = [(character, weight) for word, weight in expected for character in word]
        assert [c for c, _ in read if c != " "] == [c for c, _ in wanted if c != " "]
        for (character, weight), (_, right) in zip(read, wanted, strict=True):
            if character != " ":
                assert weight == pytest.approx(right, abs=1e-4)


def test_break_splits_segments():
    read = read_prompt("(red BREAK blue:1.2) sky BREAK BREAK breakfast", "a1111")
    assert read.segments == ("(red:1.2)", "(blue:1.2) sky", "breakfast")
    shown = next(notice for notice in read.notices if notice.code == "a1111_translated")
    assert "(red:1.2) BREAK (blue:1.2) sky BREAK breakfast" in shown.message


@pytest.mark.parametrize(
    ("text", "segment", "code"),
    [
        ("a [cat:dog:0.7] b", "a cat b", "a1111_prompt_editing"),
        ("a [cat:dog:0.2] b", "a dog b", "a1111_prompt_editing"),
        ("a [cat:dog:15] b", "a cat b", "a1111_prompt_editing"),
        ("a [cat:0.9] b", "a cat b", "a1111_prompt_editing"),
        ("a [cat::0.1] b", "a cat b", "a1111_prompt_editing"),
        ("a [(cat:1.3):dog:0.7] b", "a (cat:1.3) b", "a1111_prompt_editing"),
        ("a [cat|dog] b", "a cat, dog b", "a1111_alternation"),
        ("cat :1.2 AND dog", "cat, dog", "a1111_composition"),
    ],
)
def test_what_comfyui_cannot_express_is_settled_and_told(text, segment, code):
    read = read_prompt(text, "a1111")
    assert read.segments == (segment,)
    assert [notice.level for notice in read.notices if notice.code == code] == ["warning"]


def test_plain_a1111_text_needs_no_notice():
    assert read_prompt("a cat, easynegative", "a1111").notices == ()


def test_a1111_weight_that_is_no_number_is_refused():
    with pytest.raises(PromptError, match=r"1\.2\.3"):
        read_prompt("(cat:1.2.3)", "a1111")


@pytest.mark.parametrize(("text", "how"), [("(cat", "end of the text"), ("cat]", "literal")])
def test_unbalanced_a1111_brackets_are_told(text, how):
    notice = read_prompt(text, "a1111").notices[0]
    assert notice.code == "unbalanced_parentheses"
    assert how in notice.message
