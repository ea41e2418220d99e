from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from biotune_optuna.data.sources.open import open_images
from biotune_optuna.data.splits import make_splits
from biotune_optuna.errors import DataError

Tree = Callable[..., Path]


@pytest.fixture
def root(tree: Tree) -> Path:
    return tree({"shots": 6})


def write(root: Path, text: str, name: str = "list.csv") -> Path:
    path = root / name
    path.write_text(text, encoding="utf-8")
    return path


def test_path_and_label(root: Path) -> None:
    file = write(root, "path,label\nshots/003.png,cat\nshots/001.png,dog\nshots/000.png,cat\n")
    source = open_images(str(file))
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 1, 0]
    assert source.ids == ("shots/003.png", "shots/001.png", "shots/000.png")
    assert source.splits is None
    assert source.groups is None
    assert source.name == "list"
    assert source.load(0).size == (12, 10)


def test_all_columns_other_names_blank_lines_byte_order_mark(root: Path) -> None:
    text = (
        "\ufeffGroup, Filename ,CLASS,split,remark\n"
        "p1,shots/000.png,10,Train,x\n\n"
        ",shots/001.png,9,valid,\n"
        ",shots/002.png,9,\n"
    )
    source = open_images(write(root, text))
    assert source.classes == ("9", "10")
    assert source.splits is not None
    assert source.splits.tolist() == ["train", "val", ""]
    assert source.groups is not None
    assert len(set(source.groups.tolist())) == 3


def test_tabs(root: Path) -> None:
    text = "path\tlabel\nshots/000.png\ta, b\nshots/001.png\tc\n"
    assert open_images(write(root, text, "list.tsv")).classes == ("a, b", "c")


def test_a_space_before_a_quote_and_accents_taken_apart_are_the_same_label(root: Path) -> None:
    labels = ["é, big", "e\u0301, big", "small"]
    lines = [f'shots/00{i}.png, "{label}"' for i, label in enumerate(labels)]
    source = open_images(write(root, "\n".join(["path,label", *lines])))
    assert source.classes == ("small", "é, big")
    assert source.labels.tolist() == [1, 1, 0]


def test_numbers_beyond_64_bits_are_names(root: Path) -> None:
    text = f"path,label\nshots/000.png,{2**63}\nshots/001.png,{2**63 + 1}\nshots/002.png,-1\n"
    assert open_images(write(root, text)).classes == ("-1", str(2**63), str(2**63 + 1))


def test_row_order_does_not_matter(root: Path) -> None:
    lines = [f"shots/00{i}.png,{'ab'[i % 2]}" for i in range(6)]
    one = open_images(write(root, "\n".join(["path,label", *lines])))
    other = open_images(write(root, "\n".join(["path,label", *lines[::-1]])))
    assert one.fingerprint == other.fingerprint
    options = {"seed": 0, "n_folds": 1, "test_fraction": 0.3}
    parts = [
        [source.ids[i] for i in make_splits(source, **options).test] for source in (one, other)
    ]
    assert parts[0] == parts[1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "has no column 'path'"),
        ("path,kind\nshots/000.png,a\n", r"has no column 'label'.*found: path, kind"),
        ("path,label\n", "lists no images"),
        ("path,label,Label\nshots/000.png,a,b\n", "has two columns 'label'; rename or remove one"),
        (
            "path,label,set\nshots/000.png,a,Train\nshots/001.png,b,test\nshots/002.png,b,\n",
            "column 'set' holds 'test' and 'train', as of parts of the data; call it split",
        ),
        ("path,label\nshots/000.png,a\n,b\n", "list.csv line 3: path is empty"),
        ("path,label\nshots/000.png\n", "list.csv line 2: label is empty"),
        ("path,label,split\nshots/000.png,a,dev\n", "line 2: split 'dev' is not train, val, test"),
        (
            "path,label\nshots/000.png,a\nshots/001.png,b\nshots/000.png,b\n",
            "line 4: 'shots/000.png' is listed in line 2 already",
        ),
        ("path,label\n\n\nshots/000.png,a\n ,b\n", "list.csv line 5: path is empty"),
        (
            'path,label\nshots/000.png,a\nshots/001.png,"b\nshots/002.png,b\n',
            "list.csv' is no UTF-8 CSV file: unexpected end of data",
        ),
        (
            'path,label\nshots/000.png,a\n"shots/001.png,b\nshots/002.png,"b"\n',
            "list.csv' is no UTF-8 CSV file: ',' expected after '\"'",
        ),
        (
            "path,label\nshots/000.png,cat, big\nshots/001.png,cat, small\n",
            "list.csv line 2 has more cells than the first line has columns; put a text that",
        ),
        (
            'path,label,note\r\nshots/000.png,a,"two\r\nlines"\r\n\r\n../x.png,"b\r\nc"\r\n',
            "list.csv line 5: '../x.png' leads out",
        ),
        (
            '"path","label","a\n\nnote"\nshots/000.png,a\n\nshots/000.png,b\n',
            "line 6: 'shots/000.png' is listed in line 4 already",
        ),
        ("path,label\nshots/000.png,a\n../x.png,b\n", "line 3: '../x.png' leads out of the data"),
        ("path,label\n/etc/passwd,a\nshots/000.png,b\n", "line 2: '/etc/passwd' leads out"),
        ("path,label\nshots/\0.png,a\nshots/000.png,b\n", "list.csv"),
        ("path,label\nshots/000.png,a\nshots/9.png,b\n", "'shots/9.png' cannot be read: No such"),
        ("path,label\nshots/000.png,a\nshots,b\n", "'shots' is not a file"),
        ("path,label\nshots/000.png,a\nlist.csv,b\n", "'list.csv' is not an image"),
        ("path,label\nshots/000.png,a\nshots/001.png,a\n", "one class, 'a'"),
    ],
)
def test_bad_manifests_are_one_line(root: Path, text: str, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        open_images(write(root, text))
    assert "\n" not in str(caught.value)


def test_columns_that_are_not_used_are_told(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = "path,label,patient,split,\nshots/000.png,a,7,,\nshots/001.png,b,test,,\n"
    note = "columns of list.csv that are not used: patient"
    assert open_images(write(root, text)).notes == (note,)
    assert note in caplog.text


def test_a_pipe_is_no_table(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.csv")
    with pytest.raises(DataError, match="is not a file"):
        open_images(tmp_path / "list.csv")


def test_link_that_leads_out(root: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes((root / "shots/000.png").read_bytes())
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    file = write(root, "path,label\nshots/000.png,a\nlink.png,b\n")
    with pytest.raises(DataError, match=r"'link\.png' leads out"):
        open_images(file)


def test_not_text_and_not_there(root: Path, tmp_path: Path) -> None:
    (root / "odd.csv").write_bytes(b"\xff\xfe\x00path")
    with pytest.raises(DataError, match="is no UTF-8 CSV file"):
        open_images(root / "odd.csv")
    with pytest.raises(DataError, match=r"gone\.csv' cannot be read: No such file"):
        open_images(tmp_path / "gone.csv")


def test_bad_images_are_skipped_on_request_with_their_row(root: Path) -> None:
    (root / "shots/001.png").write_bytes(b"no")
    lines = [f"shots/00{i}.png,{'ab'[i % 2]},{'train' if i < 4 else 'test'},g{i}" for i in range(6)]
    file = write(root, "\n".join(["path,label,split,group", *lines]))
    with pytest.raises(DataError, match=r"'shots/001\.png' is not an image"):
        open_images(file)
    source = open_images(file, skip_bad_images=True)
    assert source.labels.tolist() == [0, 0, 1, 0, 1]
    assert source.splits is not None
    assert source.splits.tolist() == ["train"] * 3 + ["test"] * 2
    assert source.groups is not None
    assert source.groups.tolist() == ["g0", "g2", "g3", "g4", "g5"]
    assert len(source.skipped) == 1


def test_a_link_to_itself_is_named(tmp_path: Path, tree: Tree) -> None:
    tree({"a": 3, "b": 3})
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "list.csv").write_text("path,label\nloop.png,a\n")
    with pytest.raises(DataError, match=r"loop\.png"):
        open_images(tmp_path / "list.csv")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_any_usual_delimiter_is_read(tree: Callable[..., Path], delimiter: str, mark: str) -> None:
    root = tree({"x": 4})
    rows = ["path,label,split", *(f"x/00{i}.png,{'ab'[i % 2]},train" for i in range(4))]
    text = "\n".join(rows).replace(",", delimiter)
    (root / "m.csv").write_text(mark + text, encoding="utf-8")
    assert open_images(str(root / "m.csv")).classes == ("a", "b")


def test_back_slashes_are_read_and_one_file_twice_is_refused(tree: Callable[..., Path]) -> None:
    root = tree({"x": 4})
    rows = "".join(f"x\\00{i}.png,{'ab'[i % 2]}\n" for i in range(4))
    (root / "m.csv").write_text(f"path,label\n{rows}")
    assert len(open_images(str(root / "m.csv"))) == 4
    (root / "m.csv").write_text(f"path,label\n{rows}./x/000.png,b\n")
    with pytest.raises(DataError, match=r"line 6: './x/000\.png' is listed in line 2 already"):
        open_images(str(root / "m.csv"))


@pytest.mark.parametrize("name", ["labels.txt", "data.parquet", "rows.jsonl"])
def test_other_tables_are_told_what_would_be_right(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("x")
    with pytest.raises(DataError, match=r"is a file, but neither \.csv nor \.tsv"):
        open_images(str(tmp_path / name))
