import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.text import id_problem, normalise, readable, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", ["hello", "world"]),
        ("state-of-the-art", ["state", "of", "the", "art"]),
        ("it’s O`Clock ‘quoted’", ["it's", "o'clock", "quoted"]),
        ("it´s", ["it's"]),
        ("rock 'n' roll", ["rock", "n", "roll"]),
        ("ﬁne Ｗｉｄｅ", ["fine", "wide"]),
        ("Straße", ["strasse"]),
        ("snake_case", ["snake", "case"]),
        ("", []),
        (" \t\n\u00a0", []),
        ("... --- '''", []),
        ("❤️ 😀", []),
        ("hello❤️", ["hello"]),
    ],
)
def test_words_are_folded_and_split(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("今天天气很好", "今 天 天 气 很 好"),
        ("iPhone手机2", "iphone 手 机 2"),
        ("我用GPT-4写了3篇", "我 用 gpt 4 写 了 3 篇"),
        ("今天，天气《很好》。“是吗？”、…！（是）", "今 天 天 气 很 好 是 吗 是"),
        ("３６５天", "365 天"),
        ("二〇二六年", "二 〇 二 六 年"),
        ("東京タワーへ", "東 京 タ ワ ー へ"),
        ("ｺｰﾋｰ・ｶﾞﾑ", "コ ー ヒ ー ガ ム"),
        ("人々と時々〻いすゞ", "人 々 と 時 々 〻 い す ゞ"),
        ("葛\U000e0100飾", "葛 飾"),
        ("あ\u3099い", "あ\u3099 い"),
        ("𠮷野家", "𠮷 野 家"),
        ("한국어 낱말", "한국어 낱말"),
        ("don't说’不’", "don't 说 不"),
    ],
)
def test_each_chinese_or_japanese_character_is_a_word_and_other_runs_stay_whole(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,000 and 12,345,678", "1000 and 12345678"),
        ("1'000 1’000’000", "1000 1000000"),
        ("1\u202f000\u00a0000 km", "1000000 km"),
        ("共1,000人，１，０００", "共 1000 人 1000"),
        ("1,00 1234,567 1,0000 1, 000 1,000a", "1 00 1234 567 1 0000 1 000 1000a"),
        ("2019\u00a0200 1.000 3,14 0,125", "2019 200 1 000 3 14 0 125"),
        ("rock'n'1'000 '90s", "rock'n'1'000 90s"),
    ],
)
def test_the_digits_of_one_number_are_one_word(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    "mark", ["`", "´", "ʹ", "ʻ", "ʼ", "ʽ", "ʾ", "ʿ", "՚", "׳", "᾽", "‘", "’", "‛", "′", "Ꞌ", "ꞌ", "＇", "｀"]
)
def test_whatever_looks_like_an_apostrophe_is_one(mark):
    assert normalise(f"Hawai{mark}i {mark}Oahu{mark}") == "hawai'i oahu"


@given(st.text("0123,'’.\u202f\u00a0 _a１，"))
def test_normalising_numbers_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("text", ["it`s O'CLOCK_now - 'tis", "a\x1cb\x00c\td", "don't''", "`"])
def test_plain_ascii_is_split_as_the_same_text_beside_other_letters(text):
    assert words(text) == words(text + " é")[:-1]


@given(st.text(st.characters(codec="ascii")))
def test_no_ascii_text_is_split_otherwise_than_beside_other_letters(text):
    assert words(text) == words(text + " é")[:-1]


@given(st.text("手机々ーガが゙\U000e0100\ufe00aé1'-，。 〇𠮷\u302a한"))
def test_normalising_chinese_and_japanese_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@pytest.mark.parametrize("word", ["हिन्दी", "i̇stanbul", "ΐ", "q̃uod"])
def test_vowel_signs_and_accents_do_not_split_a_word(word):
    assert len(words(word)) == 1


def test_composed_and_decomposed_spelling_are_one_surface():
    assert normalise("Cafe\u0301 Dvor\u030ca\u0301k") == normalise("Café Dvořák") == "café dvořák"


@given(st.text())
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


@given(st.text())
def test_every_word_holds_a_letter_and_no_space(text):
    for word in words(text):
        assert any(character.isalnum() for character in word)
        assert word.split() == [word]


@pytest.mark.parametrize("identifier", ["a", "0001", "LJ002-0035", "spk_1@site+x=2.v", "_x", "Ünï", "说话人1", "a..b"])
def test_ordinary_ids_pass(identifier):
    assert id_problem(identifier) is None


@pytest.mark.parametrize(
    "identifier",
    ["", ".", "..", "../x", "/etc", "a/b", "a\\b", "a b", "a\n", "a\0b", 'a"b', "a'b", "-rf", ".hidden", "😀", "a;b",
     "a$(x)", "a\u2028", "\ud800", "x" * 201, "说" * 70],
)  # fmt: skip
def test_ids_that_could_hurt_a_file_system_or_shell_are_refused(identifier):
    assert id_problem(identifier)


@given(st.text())
def test_an_accepted_id_is_one_plain_file_name(identifier):
    if id_problem(identifier) is None:
        assert "/" not in identifier and identifier not in (".", "..")
        assert len(f"{identifier}-t000.wav".encode()) <= 255


def test_readable_text_joins_chinese_and_japanese_characters_and_nothing_else():
    assert readable(normalise("我的iPhone手机, 好 吧 OK")) == "我的 iphone 手机好吧 ok"
    assert readable(normalise("コンピュータ を使う")) == "コンピュータを使う"
    assert readable("zürich is big") == "zürich is big"
    assert words(readable("我 的 iphone 手 机")) == ["我", "的", "iphone", "手", "机"]


def test_trade_marks_and_soft_hyphens_leave_a_word_as_it_is():
    assert words("Noralux\u2122 caf\u00ad\u00e9 Acme\u2120") == ["noralux", "caf\u00e9", "acme"]


def test_a_long_run_of_apostrophes_stays_inside_a_word_and_goes_at_its_end():
    marks = "'" * 100_000  # by trying the end at each of them, this took a minute
    assert words(f"x{marks}y{marks}") == [f"x{marks}y"]
