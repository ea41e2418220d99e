"""Which folders are parts of the data (train, val, test, folds) and which are classes.

A search over folders that were parts all along would learn to tell training from test images, and
succeed. So a folder whose name looks like a part's is never taken for a class in silence: those of
`SPLIT_ALIASES` are read, and about anything like them the user is asked; so it is about folders
that hold the same folders, whatever they are called.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from biotune_optuna.errors import DataError

_logger = logging.getLogger("biotune_optuna.data")

SPLIT_ALIASES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names, lower case, that are understood for a part of the data wherever one is named."""

_WORDS: dict[str, tuple[str, ...]] = {
    "train": (
        *("train", "training", "trn", "trainset", "traindata", "trainval"),
        *("trainings", "trainingsdaten", "lernen", "lerndaten"),  # German
        *("entrainement", "apprentissage"),  # French
        *("entrenamiento", "entreno"),  # Spanish
        *("treino", "treinamento", "treinar"),  # Portuguese
        *("addestramento", "allenamento"),  # Italian
        *("trening", "treningowy", "treningowe", "uczacy", "trenovani"),  # Polish, Czech
        *("traning", "træning", "opplæring", "koulutus", "tanito", "latihan", "pelatihan"),
        *("egitim", "ogrenme"),  # Turkish
        *("обучение", "обучающая", "тренировка", "тренировочная"),
        *("训练", "训练集", "訓練", "學習", "学習", "훈련", "학습", "تدريب", "प्रशिक्षण"),
        *("εκπαιδευση", "אימון", "آموزش", "ฝึก", "тренировочный", "навчання", "トレーニング"),
    ),
    "val": (
        *("val", "valid", "validation", "validate", "validating", "valset", "valdata"),
        *("eval", "evaluation", "evaluate", "dev", "devel", "holdout", "heldout"),
        *("validierung", "validierungsdaten", "pruefung", "prufung"),
        *("validacion", "validacao", "validazione", "convalida", "validatie", "walidacja"),
        *("validace", "dogrulama", "валидация", "валидационная", "проверка", "проверочная"),
        *("验证", "验证集", "驗證", "検証", "검증", "تحقق"),
    ),
    "test": (
        *("test", "tests", "testing", "tst", "testset", "testdata"),
        *("testdaten", "essai", "essais", "prueba", "pruebas", "teste", "testes"),
        *("testowy", "testowe", "testovani", "тест", "тестовая", "тестирование"),
        *("测试", "测试集", "測試", "テスト", "시험", "테스트", "اختبار", "परीक्षण"),
        *("δοκιμη", "בדיקה", "آزمون", "ทดสอบ", "тестовый", "testi", "teszt", "ujian", "pengujian"),
    ),
}


def _plain(name: str) -> str:
    """Return a text in lower case, without accents and vowel signs."""
    plain = unicodedata.normalize("NFKD", name).casefold()
    plain = "".join(c for c in plain if unicodedata.category(c)[0] != "M").replace("ı", "i")
    return unicodedata.normalize("NFC", plain)


_PART_OF = {_plain(word): part for part, words in _WORDS.items() for word in words}
_LONG = tuple(sorted((w for w in _PART_OF if not w.isascii()), key=len, reverse=True))
# Words that say nothing more about a part.
_FILLERS = frozenset(
    {"set", "sets", "data", "dataset", "images", "image", "imgs", "img", "pictures", "photos"}
    | {"pics", "folder", "dir", "split", "part", "subset", "samples", "the", "of", "and", "for"}
    | {"daten", "bilder", "datos", "imagenes", "donnees", "dados", "dati", "集", "データ"}
)
_FOLDS = frozenset(("fold", "folds", "kfold", "cv", "split", "splits", "partition", "subset"))
# Of these there may be classes; they are folds only where each holds the same folders.
_PIECES = frozenset(("part", "set", "shard", "chunk", "batch", "group", "section", "teil", "run"))

_NO_CLASSES = frozenset(
    {"images", "image", "imgs", "masks", "mask", "labels", "label", "annotations", "annotation"}
    | {"annots", "segmentations", "ground_truth", "groundtruth", "gt", "bboxes", "xmls", "json"}
)

_CURE = (
    "name the parts train, val and test, with one folder per class in each, or list the images in"
    " a CSV file with the columns path, label and split"
)


class Part(NamedTuple):
    """A folder's name, understood.

    Attributes:
        part: ``"train"``, ``"val"``, ``"test"`` or ``"fold"``.
        rest: What else the name says, without words that say nothing; "" for the part alone.
        exact: Whether the name is one of `SPLIT_ALIASES`.
    """

    part: str
    rest: str
    exact: bool


def part_of(name: str) -> Part | None:
    """Understand a folder's name as that of a part; None where it does not look like one.

    Args:
        name: Such as ``"train"``, ``"seg_train"``, ``"TestSet-2017"``, ``"val2017"``, ``"fold_3"``.
    """
    if (alias := SPLIT_ALIASES.get(name.lower())) is not None:
        return Part(alias, "", exact=True)
    words = _words(name)
    found = [(at, part) for at, word in enumerate(words) if (part := _part(word)) is not None]
    numbers = [word for word in words if word.isdigit()]
    if not found:
        is_fold = any(word in _FOLDS for word in words) and (numbers or len(words) == 1)
        rest = [w for w in words if w not in _FOLDS and not w.isdigit() and w not in _FILLERS]
        return Part("fold", " ".join(rest), exact=False) if is_fold else None
    # "train_val" and "test_train_split" mean their first word; "trainval" is one.
    at, part = found[0]
    rest = [w for i, w in enumerate(words) if i != at and w not in _FILLERS and not w.isdigit()]
    return Part(part, " ".join(rest), exact=False)


def _part(word: str) -> str | None:
    """Return the part that a word means, perhaps as one with another: xtrain, testbilder."""
    if word in _PART_OF:
        return _PART_OF[word]
    for filler in ("x", "y", *_FILLERS):
        for rest in (word.removeprefix(filler), word.removesuffix(filler)):
            if rest != word and rest in _PART_OF and (len(filler) > 1 or word[0] == filler):
                return _PART_OF[rest]
    return None


def _words(name: str) -> list[str]:
    """Split a name into lower-case words without accents: ``"XTrain2017"`` is x, train, 2017."""
    name = re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", name)
    words: list[str] = []
    for word in re.findall(r"\d+|[^\W\d_]+", _plain(name)):
        # Chinese and its like put no space between words.
        inner = next((long for long in _LONG if long in word and word != long), None)
        words += [inner, *filter(None, word.split(inner))] if inner else [word]
    return words


class Child(NamedTuple):
    """A folder in the data's folder.

    Attributes:
        folders: Names of the folders in it.
        has_images: Whether images lie directly in it.
    """

    folders: tuple[str, ...]
    has_images: bool


def read_parts(children: Mapping[str, Child], where: str) -> dict[str, str]:
    """Decide which folders are parts.

    Args:
        children: The folders by name.
        where: What to call the folder that they are in.

    Returns:
        Folder to ``"train"``, ``"val"`` or ``"test"``; empty where all of them are classes.

    Raises:
        DataError: It is not clear; the message says why and what to do.
    """
    like = {name: part for name in children if (part := part_of(name)) is not None}
    exact = {name: part.part for name, part in like.items() if part.exact}
    others = [name for name in children if name not in exact]
    train = [name for name, part in exact.items() if part == "train"]
    if train and not (others and _holds_only_images(children[train[0]])):
        return _given_parts(exact, others, train[0], where)
    _check_folds(children, like, where)
    _check_masks(children, where)
    named = {name: part for name, part in like.items() if part.part != "fold"}
    if not named:
        _check_alike(children, where)
        return {}
    if _are_classes(children, named):
        _logger.warning(
            "%s: %s taken for a class, not for a part of the data", where, _list(tuple(named))
        )
        return {}
    if len(exact) == len(children):
        raise DataError(f"{where} has {next(iter(exact))}/ but no train/ beside it")
    looks = "look like parts of the data" if len(named) > 1 else "looks like a part of the data"
    raise DataError(f"{_list(tuple(named)[:2])} in {where} {looks}, not classes; {_CURE}")


def check_class(name: str, folders: Sequence[str], where: str) -> None:
    """Refuse a class folder, or one deeper, that holds parts or folds of its own.

    Args:
        name: What to call the folder.
        folders: Names of the folders in it.
        where: What to call the data's folder.

    Raises:
        DataError: Its folders look like parts: nobody would tell training from test images.
    """
    found = {inner: part for inner in folders if (part := part_of(inner)) is not None}
    kinds = {part.part for part in found.values()}
    if len(kinds & {"train", "val", "test"}) > 1 or (kinds == {"fold"} and len(found) > 1):
        raise DataError(
            f"{name!r} in {where} holds {_list(tuple(found)[:2])}, which look like parts of the"
            f" data; {_CURE}"
        )


def check_part(name: str, folders: Sequence[str], where: str) -> None:
    """Refuse a part all of whose folders look like parts again.

    Args:
        name: The part's folder.
        folders: Names of the folders in it.
        where: What to call the data's folder.

    Raises:
        DataError: They do, as in train/seg_train/cats.
    """
    if folders and all(part_of(one) is not None for one in folders):
        raise DataError(
            f"{name}/ in {where} holds {_list(tuple(folders)[:2])}, which looks like a part again;"
            f" put the class folders directly into {name}/"
        )


def _holds_only_images(child: Child) -> bool:
    return child.has_images and not child.folders


def _given_parts(
    exact: Mapping[str, str], others: Sequence[str], train: str, where: str
) -> dict[str, str]:
    splits = list(exact.values())
    for split in splits:
        if splits.count(split) > 1:
            raise DataError(f"{where} has two folders for the {split} part; keep one")
    if others:
        raise DataError(
            f"{where} has {train}/ beside {others[0]!r}, which is neither train, val nor test; "
            "move it away"
        )
    return dict(exact)


def _are_classes(children: Mapping[str, Child], named: Mapping[str, Part]) -> bool:
    """Whether folders that look like parts are classes all the same: trains, test tubes.

    So it is where others that look like none stand beside them, they hold no folders, and their
    names say more than a part's does. One folder ``train`` is a class of trains then, and ``valid``
    one beside ``invalid``.
    """
    others = [name for name in children if part_of(name) is None]
    if not others or any(children[name].folders for name in named):
        return False
    if all(part.rest for part in named.values()):
        return True
    if len(named) > 1:
        return False
    (name,) = named
    opposites = {f"{no}{name.lower()}" for no in ("in", "un", "non", "not", "non-", "not_")}
    return SPLIT_ALIASES.get(name.lower()) == "train" or bool(
        opposites & {other.lower() for other in others}
    )


def _check_folds(children: Mapping[str, Child], like: Mapping[str, Part], where: str) -> None:
    """Refuse folds, which are neither classes nor parts that a search can use."""
    folds = [name for name, part in like.items() if part.part == "fold"]
    numbered = [name for name in children if re.search(r"\d", name) and name not in like]
    pieces = [n for n in numbered if _PIECES & set(_words(n)) or n.isdigit()]
    alike = {child.folders for child in children.values()}
    if (
        not folds
        and len(pieces) == len(children)
        and len(alike) == 1
        and len(next(iter(alike))) > 1
    ):
        folds = pieces
    if len(children) > 1 and len(folds) == len(children):
        raise DataError(
            f"{_list(folds[:2])} in {where} look like folds, not classes; put the images of all"
            " folds into one folder per class (folds are made here), or list them in a CSV file"
            " with the columns path, label and group"
        )


def _check_alike(children: Mapping[str, Child], where: str) -> None:
    """Refuse folders that all hold folders of the same names: those may be the classes.

    So parts are noticed whatever they are called, in any language. Folders such as ``day1`` are
    no classes.
    """
    held = [set(child.folders) for child in children.values()]
    shared = set.intersection(*held) if held else set()
    shared = {n for n in shared if part_of(n) is None and (n.isdigit() or not re.search(r"\d", n))}
    if len(children) > 1 and len(shared) > 1:
        raise DataError(
            f"{_list(tuple(children)[:2])} in {where} both hold {_list(sorted(shared)[:2])}, so it"
            f" is not clear which are the classes; {_CURE}"
        )


def _check_masks(children: Mapping[str, Child], where: str) -> None:
    """Refuse images beside their masks or labels."""
    if len(children) > 1 and {name.lower() for name in children} <= _NO_CLASSES:
        raise DataError(
            f"{_list(tuple(children)[:2])} in {where} look like images beside what belongs to"
            " them, not classes; give one folder per class, or a CSV file with the columns path"
            " and label"
        )


def _list(names: Sequence[str]) -> str:
    return " and ".join(map(repr, names))
