from __future__ import annotations

import json

import pytest
from intelligent_generation.core.catalog import TagCount, TriggerWord
from intelligent_generation.core.catalog.digest import describe, pack, plain_text, unpack
from intelligent_generation.core.plan import FileRef

FILE = FileRef(folder="loras", name="styles/my_Ink-Wash_v1.2.safetensors", size=10)


@pytest.fixture
def read(header_of, kohya_lora):
    """The entry of a LoRA with this metadata."""
    return lambda metadata=None, tensors=None: describe(
        header_of(tensors or kohya_lora(), metadata), FILE
    )


def kohya(frequency: dict[str, dict[str, int]], images: dict[str, int] | None = None, **more: str):
    metadata = {"ss_tag_frequency": json.dumps(frequency), **more}
    if images is not None:
        rows = {name: {"n_repeats": 10, "img_count": count} for name, count in images.items()}
        metadata["ss_dataset_dirs"] = json.dumps(rows)
    return metadata


def words(entry) -> list[str]:
    return [word.text for word in entry.trigger_words]


def test_a_header_that_says_nothing(read):
    entry = read()
    assert entry.title == "my Ink Wash v1.2"
    assert entry.family == "sd15"
    assert (entry.trigger_words, entry.tags, entry.description) == ((), (), "")
    assert entry.recommended_weight is None
    assert entry.rank == 4
    assert not entry.has_text_encoder


def test_title_of_the_author_but_not_kohyas_own(read):
    assert read({"modelspec.title": "Ink <b>Wash</b>"}).title == "Ink Wash"
    assert read({"modelspec.title": "LoRA@1699999999"}).title == "my Ink Wash v1.2"


def test_text_encoder_and_rank(read, kohya_lora):
    te = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (16, 768)}
    entry = read(tensors=kohya_lora(rank=16) | te)
    assert entry.has_text_encoder
    assert entry.rank == 16


def test_packed_and_unpacked_it_is_the_same(read):
    entry = read(
        kohya(
            {"10_ink": {"ink wash": 20, "mountain": 7}},
            {"10_ink": 20},
            **{"modelspec.description": "é 墨 weight 0.7", "modelspec.trigger_phrase": "inkw"},
        )
    )
    assert entry.trigger_words and entry.tags and entry.recommended_weight
    again = unpack(pack(entry), FILE)
    assert again == entry
    assert isinstance(again.tags[0], TagCount)
    assert isinstance(again.trigger_words[0], TriggerWord)


@pytest.mark.parametrize("text", ["", "{}", "[1,2]", "null", "[", '["t",1,2,3,4,[],[[],[1]],5]'])
def test_a_damaged_digest_is_a_value_error(text):
    with pytest.raises(ValueError):
        unpack(text, FILE)


class TestTriggerWords:
    def test_order_of_the_sources(self, read):
        metadata = kohya(
            {"10_x": {"tag word": 10}},
            {"10_x": 10},
            **{
                "instance_prompt": "a photo of sks dog",
                "trained_words": '["trained one", "trained two"]',
                "modelspec.trigger_phrase": "spec phrase, second phrase",
            },
        )
        assert [(w.text, w.source) for w in read(metadata).trigger_words] == [
            ("spec phrase", "modelspec"),
            ("second phrase", "modelspec"),
            ("trained one", "trained_words"),
            ("trained two", "trained_words"),
            ("a photo of sks dog", "instance_prompt"),
            ("tag word", "tag_frequency"),
        ]

    def test_tags_in_nearly_every_image_by_share(self, read):
        frequency = {"10_set": {"blue armor": 38, "wings": 36, "sword": 35, "1girl": 40}}
        entry = read(kohya(frequency, {"10_set": 40}))
        # 35 of 40 is below nine tenths; 1girl describes any picture.
        assert entry.trigger_words == (
            TriggerWord("blue armor", 0.95, "tag_frequency"),
            TriggerWord("wings", 0.9, "tag_frequency"),
        )
        assert entry.tags[0] == TagCount("1girl", 1.0)

    def test_the_folders_or_outputs_own_name_needs_half_the_images(self, read):
        frequency = {"10_Miku Hatsune": {"miku hatsune": 6, "twintails": 6}}
        assert words(read(kohya(frequency, {"10_Miku Hatsune": 10}))) == ["miku hatsune"]
        frequency = {"10_img": {"ink_wash": 6, "twintails": 6}}
        metadata = kohya(frequency, {"10_img": 10}, ss_output_name="ink_wash")
        assert words(read(metadata)) == ["ink_wash"]

    def test_each_concept_of_several_folders(self, read):
        frequency = {"5_a": {"alice": 10, "hat": 3}, "5_b": {"bob": 30, "hat": 3}}
        entry = read(kohya(frequency, {"5_a": 10, "5_b": 30}))
        assert entry.trigger_words == (
            TriggerWord("bob", 0.75, "tag_frequency"),
            TriggerWord("alice", 0.25, "tag_frequency"),
        )

    def test_image_counts_of_a_dataset_file(self, read):
        dataset = {
            "tag_frequency": {"img": {"castle": 19, "moat": 4}},
            "subsets": [{"image_dir": "C:\\train\\img", "img_count": 20, "num_repeats": 5}],
        }
        entry = read({"ss_datasets": json.dumps([dataset])})
        assert entry.trigger_words == (TriggerWord("castle", 0.95, "tag_frequency"),)
        assert entry.tags == (TagCount("castle", 0.95), TagCount("moat", 0.2))

    def test_without_image_counts_the_most_frequent_tag_gives_them(self, read):
        # As ai-toolkit writes its trigger word.
        assert words(read(kohya({"1_ohwx man": {"ohwx man": 1}}))) == ["ohwx man"]

    def test_no_repeats_and_no_more_than_sixteen(self, read):
        frequency = {"1_x": {f"word {i}": 10 for i in range(30)} | {"inkw": 10}}
        metadata = kohya(frequency, {"1_x": 10}, **{"modelspec.trigger_phrase": "InkW, inkw"})
        found = words(read(metadata))
        assert found[0] == "InkW"
        assert len(found) == len({word.lower() for word in found}) == 16

    def test_lora_tags_within_the_phrase_go(self, read):
        metadata = {"modelspec.trigger_phrase": "<lora:ink:0.8>, ink style;"}
        assert words(read(metadata)) == ["ink style"]


class TestTags:
    def test_at_most_64_the_authors_own_first(self, read):
        frequency = {"1_x": {f"tag {i:03d}": 200 - i for i in range(150)}}
        entry = read(kohya(frequency, {"1_x": 200}, **{"modelspec.tags": "Style, tag 000"}))
        assert len(entry.tags) == 64
        assert entry.tags[:3] == (
            TagCount("Style", 1.0),
            TagCount("tag 000", 1.0),
            TagCount("tag 001", 0.995),
        )

    def test_sentences_are_no_tags(self, read):
        sentence = "a painting of a ship on a stormy sea at night"
        assert read(kohya({"1_x": {sentence: 5, "ship": 5}})).tags == (TagCount("ship", 1.0),)

    @pytest.mark.parametrize(
        "metadata",
        [
            {"ss_tag_frequency": "not json"},
            {"ss_tag_frequency": '{"1_x": ["a"]}'},
            {"ss_tag_frequency": '{"1_x": {"a": "many", "b": -3, "": 4}}'},
            {
                "ss_tag_frequency": "[]",
                "ss_dataset_dirs": "7",
                "ss_datasets": '[3, {"subsets": 1}]',
            },
            {"ss_datasets": '[{"tag_frequency": 4, "subsets": [{"image_dir": 3}, 9]}]'},
        ],
    )
    def test_odd_fields_are_passed_over(self, read, metadata):
        entry = read(metadata)
        assert (entry.tags, entry.trigger_words, entry.family) == ((), (), "sd15")


class TestWeight:
    @pytest.mark.parametrize(
        ("hint", "weight"),
        [
            ("weight 0.7", 0.7),
            ("Recommended strength 0.6-0.8", 0.7),
            ("Use a strength of 0.5 to 1", 0.75),
            ("LoRA weight: 1", 1.0),
            ("works best at 0.8 weight", 0.8),
            ("0.6~0.8 strength is good", 0.7),
            ("The best weight range is about 0.6", 0.6),
            ("推荐权重0.6-0.8", 0.7),
            ("Denoising strength: 0.45", None),
            ("weight decay 0.1", None),
            ("weight 12", None),
            ("a weight of 0.000001", None),
            ("trained for 10 epochs at 512", None),
            ("a lightweight LoRA with 4 styles", None),
            ("80% weight", None),
        ],
    )
    def test_in_words(self, read, hint, weight):
        assert read({"modelspec.usage_hint": hint}).recommended_weight == weight

    def test_the_number_of_the_header_comes_first(self, read):
        metadata = {"modelspec.lora_default_weight": "0.65", "modelspec.usage_hint": "weight 0.9"}
        assert read(metadata).recommended_weight == 0.65

    def test_then_hint_description_comment(self, read):
        metadata = {"ss_training_comment": "weight 0.9"}
        assert read(metadata).recommended_weight == 0.9
        metadata["modelspec.description"] = "<p>Weight: <b>0.5</b></p>"
        assert read(metadata).recommended_weight == 0.5


class TestDescription:
    def test_without_html(self, read):
        text = "<p>Ink &amp; wash.<br/>For <a href='x'>maps</a></p><script>evil()</script> a < b"
        assert read({"modelspec.description": text}).description == "Ink & wash. For maps a < b"

    def test_at_most_a_thousand_characters(self, read):
        entry = read({"modelspec.description": "word " * 1000})
        assert len(entry.description) <= 1000
        assert entry.description.endswith("word…")

    def test_a_megabyte_of_brackets_is_quick(self):
        assert plain_text("<" * 1_000_000).startswith("<<<")
