"""Texts from CSV files: splits, the tokenizer, ids, and what is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from compressbench.core.errors import CheckFailedError, UserError
from compressbench.data import tokens
from compressbench.data.ag_news import AgNews, read_texts
from tests.sample_texts import write_news

ROWS = 120
SMALL = {"vocabulary": 300, "max_tokens": 20}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPRESSBENCH_STORE", str(tmp_path / "store"))


@pytest.fixture
def root(tmp_path):
    write_news(tmp_path / "test.csv", ROWS)
    return tmp_path


def news(root, **options) -> AgNews:
    return AgNews(str(root), **{**SMALL, **options})


def test_one_file_is_split_by_class_and_seed(root):
    data = news(root, validation_fraction=0.2, test_fraction=0.1)
    found = {name: data.split(name) for name in ("train", "validation", "test")}
    assert [len(s) for s in found.values()] == [84, 24, 12]
    assert found["validation"].targets.bincount().tolist() == [6, 6, 6, 6]
    everything = read_texts(root / "test.csv").texts
    parts = [data._of(name).texts for name in found]
    assert sorted(text for part in parts for text in part) == sorted(everything)
    other = news(root, split_seed=1, validation_fraction=0.2, test_fraction=0.1)
    assert other._of("test").texts != parts[2]
    assert other.manifest() != data.manifest()


def test_the_standard_pair_keeps_its_test_file_apart(root):
    write_news(root / "train.csv", 60, seed=1)
    data = news(root, validation_fraction=0.2)
    assert [len(data.split(n)) for n in ("train", "validation", "test")] == [48, 12, ROWS]
    assert data._of("test").texts == read_texts(root / "test.csv").texts
    before = data.tokenizer
    write_news(root / "test.csv", 40, seed=7)
    assert news(root, validation_fraction=0.2).tokenizer == before, "made of training texts alone"


def test_a_title_and_a_description_are_one_text(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text('"3","A title","Said ""so"", twice"\n"1",b,c\n', encoding="utf-8")
    texts, found = read_texts(path)
    assert texts == ['A title Said "so", twice', "b c"]
    assert found.tolist() == [2, 0]


def test_a_missing_tokenizers_library_names_the_extra(root, monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"^tokenizers is not installed: pip .* '\.\[text\]' in"):
        _ = news(root).spec


def test_ids_are_those_of_the_tokenizer_padded_and_cut(root):
    from tokenizers import Tokenizer

    data = news(root)
    split, made = data.split("train"), Tokenizer.from_str(data.tokenizer)
    assert split.inputs.dtype == torch.int16
    assert split.inputs.shape == (len(split), 20) == (len(split), *data.spec.input_shape)
    made.no_padding()
    made.no_truncation()
    lengths = set()
    for row, text in zip(split.inputs.tolist(), data._of("train").texts, strict=True):
        whole = made.encode(text).ids
        lengths.add(min(len(whole), 20))
        assert row == (whole + [tokens.PAD] * 20)[:20]
        assert tokens.PAD not in whole
    assert min(lengths) < 20 == max(lengths)
    prepared = data.prepare(split.inputs[:3])
    assert prepared.dtype == torch.int64
    assert prepared.equal(split.inputs[:3].long())
    assert data.spec.tokens.vocabulary == made.get_vocab_size() <= 300
    assert int(split.inputs.max()) < data.spec.tokens.vocabulary


@pytest.mark.parametrize(
    "text", ["Minister SAYS peace", "naïve café — 東京 \U0001f600", "", "x\ty\n"]
)
def test_every_text_comes_back_from_its_ids(root, text):
    from tokenizers import Tokenizer

    made = Tokenizer.from_str(news(root, max_tokens=200).tokenizer)
    assert made.decode(made.encode(text).ids).strip() == text.lower().strip()
    assert made.decode(made.encode("a\\b").ids).strip() == "a b"


TRAIN = """
import hashlib
from compressbench.data.tokens import train_tokenizer
made = train_tokenizer([f"w{n % 37}x{n % 11}" for n in reversed(range(400))], 400, 8, True)
print(hashlib.sha256(made.encode()).hexdigest())
"""


def test_the_same_texts_give_the_same_tokenizer_in_every_process():
    texts = [f"w{n % 37}x{n % 11}" for n in range(400)]  # of equal frequency: ties everywhere
    made = {tokens.train_tokenizer(texts, 400, 8, True) for _ in range(20)}
    command = [sys.executable, "-c", TRAIN]
    other = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip()
    assert {hashlib.sha256(tokenizer.encode()).hexdigest() for tokenizer in made} == {other}


def test_training_masks_a_share_of_the_ids_and_no_padding(root):
    data = news(root, drop_tokens=0.25)
    ids = data.split("train").inputs
    masked = data.augment(ids, torch.Generator().manual_seed(0))
    again = data.augment(ids, torch.Generator().manual_seed(0))
    assert masked.equal(again)
    changed = masked != ids
    assert (masked[changed] == tokens.MASK).all()
    assert masked.dtype == ids.dtype
    assert not (masked[ids == tokens.PAD] != tokens.PAD).any()
    assert 0.2 < int(changed.sum()) / int((ids != tokens.PAD).sum()) < 0.3
    plain = news(root, drop_tokens=0.0)
    assert plain.augment(ids, torch.Generator()).equal(ids)


def test_ids_are_made_once(root, monkeypatch):
    first = news(root)
    wanted = first.split("validation").inputs, first.tokenizer

    def refuse(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(tokens, "train_tokenizer", refuse)
    again = news(root)
    assert again.split("validation").inputs.equal(wanted[0])
    assert again.tokenizer == wanted[1] == again.companions()["tokenizer.json"]
    with pytest.raises(AssertionError, match="trained again"):
        news(root, lowercase=False).split("train")


def test_the_manifest_follows_files_and_options(root):
    data = news(root)
    kept = data.manifest()
    for options in ({"vocabulary": 280}, {"max_tokens": 19}, {"lowercase": False},
                    {"drop_tokens": 0.2}, {"validation_fraction": 0.3}):  # fmt: skip
        assert news(root, **options).manifest() != kept
    data.verify()
    write_news(root / "test.csv", ROWS, seed=3)
    with pytest.raises(CheckFailedError, match=r"test\.csv changed while in use"):
        data.verify()
    assert news(root).manifest() != kept


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('"1","a"\n', "row 0: 3 columns are needed .*, got 2"),
        (
            '"1","a","b"\n"5","a","b"\n"2","a","b"\n',
            "row 1: label must be one of 1, 2, 3, 4, got 5",
        ),
        ('"1","a","b"\n"x","a","b"\n', "row 1: label must be one of 1, 2, 3, 4, got 'x'"),
        ('"1","a","b"\n"1","c","d"\n', "at least two classes are needed"),
        ("", "at least two classes are needed"),
        ('"1","a","b"\n"2","a","b\n', "not a valid CSV file"),
        (b'"1","a","\xff"\n', "not a valid CSV file in UTF-8"),
        ('"1","a","b"\n"2","c","d"\n', "too few texts for a validation split"),
    ],
)
def test_a_file_that_is_no_news_is_refused_in_one_line(tmp_path, content, message):
    path = tmp_path / "test.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as refused:
        news(tmp_path).split("train")
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_missing_file_is_refused(root, tmp_path_factory):
    with pytest.raises(UserError, match=r"dataset\.root is not set"):
        AgNews()
    with pytest.raises(UserError, match=r"no train\.csv or test\.csv there"):
        news(tmp_path_factory.mktemp("empty"))
